"""What a run will be, before it is one: its plan (steps and work), and the table of `--print` (size, memory, hours).

In: a recipe, its data sets (checked or assumed) and, if known, training images per second and GPU.
"""

import functools
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from config.schema import ModelConfig, Recipe, StageConfig
from ffcv_ops import order
from ffcv_ops.augment import chain, load
from ffcv_ops.errors import UserError
from ffcv_ops.storage.shards import exists
from training import model, optim, schedule
from training.datasets import DataSet
from training.plan import StagePlan

COLUMNS = (
    "stage", "px", "tokens", "M param.", "GMACs", "steps", "samples", "lr start", "lr peak", "lr end", "at once", "GiB",
    "GPU-hours",
)  # fmt: skip


def training_plan(recipe: Recipe, sets: dict[str, DataSet], first: int) -> list[StagePlan]:
    """Of the stages from number `first` on."""
    plans = []
    for stage in recipe.stages[first:]:
        data = sets[stage.data]
        macs = _macs(recipe.model, stage.resolution, data.classes, stage.drop_path)
        steps = stage_length(stage, sets)[0] // stage.epochs
        # Of a lower resolution nothing is counted: the work is taken to go with the area of the images.
        scales = ((schedule.resolution(stage, epoch) / stage.resolution) ** 2 for epoch in range(stage.epochs))
        work = tuple(round(steps * stage.batch * macs * scale, 6) for scale in scales)
        plans.append(StagePlan(stage.name, steps, work, data.train.samples, data.val.samples, data.classes))
    return plans


@functools.cache
def _macs(config: ModelConfig, resolution: int, classes: int, drop_path: float) -> float:
    """Multiply-adds (10^9) of an image. They take 0.3 s to count, and stages and runs of one process share them."""
    return model.macs(model_on_shapes(config, resolution, classes, drop_path=drop_path), resolution)


def describe(recipe: Recipe, sets: dict[str, DataSet], *, images_per_s: Sequence[float] = ()) -> str:
    """A table of the stages as YAML comments, to follow the recipe. `images_per_s`: of one GPU, for each stage or for
    the first alone, from which the others' follow by their multiply-adds."""
    networks = [
        model_on_shapes(recipe.model, stage.resolution, sets[stage.data].classes, drop_path=stage.drop_path)
        for stage in recipe.stages
    ]
    gmacs = [model.macs(network, stage.resolution) for network, stage in zip(networks, recipe.stages, strict=True)]
    speeds = list(images_per_s)
    speeds += [speeds[0] * gmacs[0] / own for own in gmacs[len(speeds) :]] if speeds else [None] * len(gmacs)
    rows = [COLUMNS]
    for stage, network, cost, speed in zip(recipe.stages, networks, gmacs, speeds, strict=True):
        steps, rates = stage_length(stage, sets)
        at_once = stage.mix_chunk if recipe.speed.micro_batch == "auto" else recipe.speed.micro_batch
        samples = steps * stage.batch
        size, parameters = peak_memory(recipe, stage, network, at_once), f"{model.count(network) / 1e6:.3f}"
        hours = f"{samples / speed / 3600:.1f}" if speed else "-"
        rows.append(
            (stage.name, stage.resolution, model.tokens(network) or "-", parameters, f"{cost:.2f}", steps,
             f"{samples:,}", *(f"{rate:.2e}" for rate in rates), at_once, f"{size / 2**30:.1f}", hours)
        )  # fmt: skip
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(COLUMNS))]
    lines = ["  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"# {line}".rstrip() + "\n" for line in (*lines, "", *_notes(recipe, sets, images_per_s)))


def _notes(recipe, sets, images_per_s):
    for stage in recipe.stages:
        load.from_text(chain.text_of(stage))  # a mistake in a file of the user's own is found before a run is
        yield f"{stage.name}: {chain.describe(stage)}"
    yield "GiB: estimated peak memory of a device that takes `at once` samples (training/estimate.py says how)."
    if images_per_s:
        speeds = ", ".join(f"{speed:.4g}" for speed in images_per_s)
        yield f"GPU-hours: at {speeds} training images/s and GPU, without evaluation and loading."
    for data in sets.values():
        if not exists(data.train.path):
            yield (f"{data.train.path} is not here: taken to hold {data.train.samples:,} images in"
                   f" {data.classes:,} classes.")  # fmt: skip


def model_on_shapes(config: ModelConfig, resolution: int, classes: int, *, drop_path: float) -> nn.Module:
    """The model of a stage without contents."""
    with torch.device("meta"):
        return model.create(
            config.name,
            resolution=resolution,
            classes=classes,
            drop_path=drop_path,
            layer_scale=config.layer_scale,
            blur_pool=config.blur_pool,
        )


def stage_length(stage: StageConfig, sets: dict[str, DataSet]) -> tuple[int, tuple[float, float, float]]:
    """Steps of a stage; its learning rate at the start, at its highest and in the last step."""
    samples = sets[stage.data].train.samples
    per_epoch = order.epoch_length(samples, repeats=stage.repeats) // stage.batch
    if per_epoch == 0:
        raise UserError(
            f"stage {stage.name}: {samples} images do not fill one batch of {stage.batch}; try"
            f" {order.smaller_batch(stage, samples)} and a lower --stage.lr"
        )
    steps = per_epoch * stage.epochs
    rates = [schedule.of_stage(stage, step, per_epoch) for step in (*range(0, steps, per_epoch), steps - 1)]
    return steps, (rates[0], max(rates), rates[-1])


def peak_memory(recipe: Recipe, stage: StageConfig, network: nn.Module, samples: int) -> int:
    """Bytes that a device needs at most when it takes `samples` at once; estimated, not measured.

    These are float32 weights, gradients, the optimizer's moments and the EMA; then the larger of LAMB's update (256 MiB
    at most) and what the forward pass keeps for the backward pass. The latter is what autograd saves of this model,
    counted on shapes. Left out are the images, the kernels' own buffers, and the allocator's waste.
    """
    on_cpu = recipe.speed.device == "cpu" and recipe.speed.precision == "auto"
    precision = torch.float32 if on_cpu or recipe.speed.precision == "fp32" else torch.bfloat16
    once, each = model.activations(network, stage.resolution, precision)
    weights = 4 * model.count(network)
    update = min(weights, 4 * optim.GPU_TOGETHER) if stage.optimizer == "lamb" else 0
    kept = weights * (2 + optim.OPTIMIZERS[stage.optimizer].moments + (stage.ema is not None))
    return kept + max(once + samples * each, update)


def throughput(step: Callable[[], object], samples: int, device: torch.device) -> float:
    """Images per second of `step`, which trains on `samples` of them: two to start, then up to ten steps or 20 s."""
    for _ in range(2):
        step()
    _wait(device)
    began, steps = time.perf_counter(), 0
    while steps < 10 and time.perf_counter() - began < 20:
        step()
        steps += 1
    _wait(device)
    return samples * steps / (time.perf_counter() - began)


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
