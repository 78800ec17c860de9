"""What a network costs, without building it where recipes/model_costs.json knows it.

The file has a row for each network of recipes/, made by `python -m tools.model_costs`. All that it tells is linear in
the number of classes: a pair [a, b] stands for a + b x classes. Other networks are built by timm on shapes and counted,
which takes seconds.
"""

import functools
import json
from typing import NamedTuple

from config.recipe import BASE_RECIPE
from config.schema import ModelConfig

TABLE = BASE_RECIPE.with_name("model_costs.json")


class ModelCosts(NamedTuple):
    """`saved_*`: bytes that a forward pass of training keeps for its backward pass, (once, for each sample), with
    matrix products in that precision."""

    parameters: int
    macs: int  # multiply-adds of one image's evaluation
    tokens: int | None  # patches of an image; None for a network without patches
    saved_fp32: tuple[int, int]
    saved_bf16: tuple[int, int]

    @property
    def gmacs(self) -> float:
        """Multiply-adds in units of 10^9, the papers' "GFLOPs"."""
        return self.macs / 1e9


@functools.cache
def model_costs(config: ModelConfig, resolution: int, classes: int, *, drop_path: float) -> ModelCosts:
    """Of a network at `resolution` x `resolution` pixels; of stochastic depth only whether there is any counts."""
    row = _table().get(row_name(config, resolution, drop_path=drop_path))
    if row is None:
        return count(config, resolution, classes, drop_path=drop_path)

    def value(name):
        at_none, per_class = row[name]
        return at_none + per_class * classes

    return ModelCosts(
        parameters=value("parameters"),
        macs=value("macs"),
        tokens=row["tokens"],
        saved_fp32=(value("fp32_once"), value("fp32_per_sample")),
        saved_bf16=(value("bf16_once"), value("bf16_per_sample")),
    )


def row_name(config: ModelConfig, resolution: int, *, drop_path: float) -> str:
    """The row of the table: every option that decides a cost, but for the classes."""
    words = [config.name, f"{resolution} px"]
    words += [config.args] if config.args else []
    words += ["no LayerScale"] if config.layer_scale is None else []
    words += ["blur"] if config.blur_pool else []
    words += ["stochastic depth"] if drop_path else []
    return ", ".join(words)


@functools.cache
def _table():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def count(config: ModelConfig, resolution: int, classes: int, *, drop_path: float) -> ModelCosts:
    """The same from the network itself, built on shapes: without contents, on torch's meta device."""
    import torch  # with timm these take seconds

    from training.network import model
    from training.planning import cost

    with torch.device("meta"):
        network = model.of_recipe(config, resolution=resolution, classes=classes, drop_path=drop_path)
    return ModelCosts(
        parameters=cost.num_parameters(network),
        macs=round(cost.gmacs(network, resolution) * 1e9),
        tokens=model.tokens(network),
        saved_fp32=cost.activation_bytes(network, resolution, torch.float32),
        saved_bf16=cost.activation_bytes(network, resolution, torch.bfloat16),
    )
