"""Weights of one network -> those of another: another resolution, other classes; and loading them to the letter.

In: a state dict in timm's names, as weights.py gives it, and the network that is to have it.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn
from torch.nn import functional as F

from ffcv_ops.errors import UserError


def adapt_state_dict(
    weights: dict[str, Tensor],
    model: nn.Module,
    *,
    head: Literal["keep", "new", "map"] = "keep",
    class_map: list[int] | None = None,
    say: Callable[[str], object] = lambda message: None,
) -> dict[str, Tensor]:
    """`weights` of the same architecture at another resolution, made to fit `model`; unchanged tensors are not copied.

    The position embedding is resampled to the model's grid (bicubic, corners not aligned, no antialiasing, as in the
    official code). `head`: keep takes the classifier of `weights`; new takes the model's own, fresh one; map does too
    and copies into its class k the class `class_map[k]` of `weights`, where that is not -1. `say` is told where the
    class token's position was moved.
    """
    own = model.state_dict().keys()
    adapted = {
        old if (old := re.sub(r"\bls([12])\.gamma$", r"gamma_\1", key)) in own else key: value
        for key, value in weights.items()
    }  # timm's EVA models have the official names, which weights.py changed
    if _has_places(weights.get("pos_embed")) and _has_places(getattr(model, "pos_embed", None)):
        grid = model.patch_embed.grid_size
        prefix = model.pos_embed.shape[1] - math.prod(grid)  # tokens with an embedding and no place: 0 in deit3 models
        has_class_position = prefix == 0 and _side(weights["pos_embed"], 1) > 0
        if has_class_position and weights["pos_embed"][:, :1].shape == getattr(weights.get("cls_token"), "shape", None):
            adapted |= _fold_class_position(weights)
            say("the class token's position embedding is added to the class token, which gives the same outputs")
        adapted["pos_embed"] = _resample(adapted["pos_embed"], grid, prefix)
    if head != "keep":
        own = {key: value for key, value in model.state_dict().items() if is_head(key, model)}
        adapted = {key: value for key, value in adapted.items() if not is_head(key, model)} | own
    if head == "map":
        old = torch.tensor(class_map, device=next(iter(own.values())).device)
        for key, value in own.items():
            given = weights.get(key)
            if given is None or given.ndim != value.ndim or given.shape[1:] != value.shape[1:]:
                raise UserError(f"head: map needs {key} in the weights, of {tuple(value.shape[1:])} for each class")
            if len(given) <= max(class_map) or not given.is_floating_point():
                raise UserError(f"head: map: {key} has {len(given)} classes of {given.dtype}; are the weights whole?")
            known = (old >= 0).view(-1, *[1] * (value.ndim - 1))
            adapted[key] = torch.where(known, given.to(value)[old.clamp(min=0)], value)
    return adapted


@torch.no_grad()
def set_resolution(model: nn.Module, pixels: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Has one of `model.RESIZABLE` take images of `pixels` x `pixels` from now on. Its position embedding becomes what
    `adapt_state_dict` would make of it, as a parameter of its own, also in `optimizer`. What that keeps for each number
    of the old one, moments, is resampled linearly, so that squares stay positive; other tensors begin anew."""
    old, before = model.pos_embed, math.prod(model.patch_embed.grid_size)
    model.set_input_size((pixels, pixels))  # timm's; its own embedding, with antialiasing, is not kept
    if old is None:
        return
    grid, prefix = model.patch_embed.grid_size, old.shape[1] - before
    new = model.pos_embed = nn.Parameter(_resample(old, grid, prefix).contiguous(), requires_grad=old.requires_grad)
    for group in optimizer.param_groups if optimizer else ():
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, {}) if optimizer else {}
    if state and all(value.shape == old.shape for value in state.values() if torch.is_tensor(value) and value.ndim):
        optimizer.state[new] = {
            name: _resample(value, grid, prefix, "bilinear") if torch.is_tensor(value) and value.ndim else value
            for name, value in state.items()
        }


def num_classes(weights: dict[str, Tensor], model: nn.Module) -> int:
    """The number of classes of `weights`, of the architecture of `model`; 0 if they have no classifier."""
    return next((len(value) for key, value in weights.items() if is_head(key, model) and value.ndim), 0)


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies `weights` into `model`; each must have its place, shape and kind of number, else nothing is copied."""
    own = model.state_dict()
    faults = [f"{key}: missing" for key in own if key not in weights]
    faults += [f"{key}: not in the model" for key in weights if key not in own]
    for key in (key for key in own if key in weights):
        given, wanted = weights[key], own[key]
        if given.shape != wanted.shape:
            faults.append(f"{key}: {tuple(given.shape)}, the model has {tuple(wanted.shape)}")
        elif (given.is_floating_point(), given.is_complex()) != (wanted.is_floating_point(), wanted.is_complex()):
            faults.append(f"{key}: numbers of {given.dtype}, the model has {wanted.dtype}")
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise UserError(f"{len(faults)} of the weights do not fit the model: {shown}{_advice(faults, own, model)}")
    model.load_state_dict(weights)


def _advice(faults, own, model):
    heads = sum(is_head(key, model) for key in own)
    of_heads = sum(is_head(fault.partition(":")[0], model) for fault in faults)
    if len(faults) == of_heads == heads:
        return ". For other classes set stage.head: new"
    return ". Is model.name the architecture of the weights?"


def is_head(key: str, model: nn.Module) -> bool:
    """Whether the weight of this name is the classifier's."""
    names = model.default_cfg["classifier"]
    return key.rpartition(".")[0] in ([names] if isinstance(names, str) else names)


# --- position embedding --------------------------------------------------------------------------------------------


def _has_places(embedding):
    """Whether it is (1, tokens, channels); other families of timm have other shapes, which are left as they are."""
    return embedding is not None and embedding.ndim == 3 and embedding.numel() > 0 and embedding.is_floating_point()


def _side(embedding, prefix):
    """Places along a side of the square grid behind the first `prefix` tokens; 0 where they are no square."""
    count = max(embedding.shape[1] - prefix, 0)
    side = math.isqrt(count)
    return side if side * side == count else 0


def _fold_class_position(weights):
    """DeiT and ViT add a position to the class token too, DeiT III does not: both add it to a constant."""
    own, places = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
    return {"cls_token": (weights["cls_token"].float() + own.float()).to(own.dtype), "pos_embed": places}


def _resample(embedding, grid, prefix, mode="bicubic"):
    """(1, prefix + tokens, channels) -> (1, prefix + product of `grid`, channels)."""
    count = embedding.shape[1] - prefix
    if count == math.prod(grid):
        return embedding
    side = _side(embedding, prefix)
    if not side:
        raise UserError(f"the weights' pos_embed has {count} places, which is no square grid; it cannot be resampled")
    places = embedding[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    places = F.interpolate(places.float(), size=grid, mode=mode, align_corners=False).to(embedding.dtype)
    return torch.cat((embedding[:, :prefix], places.flatten(2).transpose(1, 2)), dim=1)


# --- classes -------------------------------------------------------------------------------------------------------


def match_classes(
    old: int, new: int, *, old_names: Sequence[str] | None = None, new_names: Sequence[str] | None = None
) -> list[int]:
    """For each of `new` classes the one of `old` classes with the same name, or -1.

    Names that are not given, or not that many, are the synsets of the ImageNet with so many classes, as timm lists it.
    """
    names = []
    for count, given in ((old, old_names), (new, new_names)):
        known = given if given is not None and len(given) == count else synsets(count)
        if known is None:
            raise UserError(
                f"head: map needs the names of {count} classes, and no ImageNet that timm knows has that many; write"
                " the .beton from class folders, which names them in the .json beside it, or set head: new"
            )
        names.append(known)
    place = {name: number for number, name in enumerate(names[0])}
    class_map = [place.get(name, -1) for name in names[1]]
    if max(class_map) < 0:
        raise UserError(f"head: map finds none of the classes {names[1][0]}, ... in the weights; set head: new")
    return class_map


def synsets(count: int) -> list[str] | None:
    """The classes of the ImageNet with so many of them, as timm orders them; None if there is none."""
    subset = infer_imagenet_subset({"num_classes": count})
    return None if subset is None else ImageNetInfo(subset).label_names()
