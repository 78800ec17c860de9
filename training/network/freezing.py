"""Parts of a network that a stage leaves as they are (`stage.freeze`): the backbone, or its first blocks."""

from typing import Literal

from timm.models import group_parameters
from torch import nn

from ffcv_ops.errors import UserError
from training.network.adapt_weights import is_head


def freeze(model: nn.Module, what: int | Literal["backbone"]) -> None:
    """backbone: all but the classifier, which is linear probing. A number: the stem (patches, tokens, positions) and so
    many blocks, as timm's `group_matcher` of the model counts layers. UserError where there are not as many."""
    layers = {name: 0 for name, _ in model.named_parameters()}
    if what != "backbone":
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        last = max(layer for name, layer in layers.items() if not is_head(name, model))
        if what >= last:
            raise UserError(f"freeze {what}: there are {last} layers behind the stem; for all of them set backbone")
    for name, parameter in model.named_parameters():
        if not is_head(name, model) and layers[name] <= (0 if what == "backbone" else what):
            parameter.requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Training mode, but for the batch normalization of frozen parts, whose statistics stay as they are too."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
            p.requires_grad for p in module.parameters()
        ):
            module.eval()
