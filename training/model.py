"""The model of a stage: built fresh, grown from the weights of the last stage, and measured.

In: timm's name of an architecture, the stage's resolution (pixels), stochastic depth and the number of classes.
Out: an `nn.Module` that takes float images (n, 3, resolution, resolution) and returns logits (n, classes).

`deit3_*` models start as the official code starts them, where timm differs in three places: LayerScale begins at 1e-4,
stochastic depth has one rate in every block (timm raises it from 0 in the first), and the class token is drawn with
standard deviation .02. Every other timm model is built as timm builds it, with the rates that timm gives its branches;
only the draws of stochastic depth are ours in all models.
"""

import difflib
import math
from typing import Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ffcv_ops.errors import UserError
from training import stochastic_depth
from training.stochastic_depth import StochasticDepth

_SETTINGS = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
# Our own architectures as timm's deit3_small_patch16_224 with other arguments, so that any timm can build them.
SHAPES = {
    "deit3_tiny_patch16_224": {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3},
    "deit3_micro_patch16_224": {"patch_size": 16, "embed_dim": 128, "depth": 6, "num_heads": 2},
}
# Read by timm's register_model: what it knows of the models below.
default_cfgs = generate_default_cfgs({name: dict(_SETTINGS) for name in SHAPES})


def _deit3(name, pretrained, arguments):
    rules = {"no_embed_class": True, "init_values": 1e-4}
    return build_model_with_cfg(VisionTransformer, name, pretrained, **(SHAPES[name] | rules | arguments))


@register_model
def deit3_tiny_patch16_224(pretrained=False, **arguments) -> VisionTransformer:
    """ViT-Ti/16 of the official code, which timm lacks: 5.7 million parameters."""
    return _deit3("deit3_tiny_patch16_224", pretrained, arguments)


@register_model
def deit3_micro_patch16_224(pretrained=False, **arguments) -> VisionTransformer:
    """Ours, for CPUs: 1.3 million parameters besides the head; heads of 64 channels as in the paper's models."""
    return _deit3("deit3_micro_patch16_224", pretrained, arguments)


def create(
    name: str, *, resolution: int, classes: int, drop_path: float, layer_scale: float | None, blur_pool: bool = False
) -> nn.Module:
    """A freshly initialised model; its random weights come from torch's global generator.

    `layer_scale` is for deit3 models, None builds them without it. A resolution that the patch does not divide leaves
    the last rows and columns of the image unused, as in the official code: ViT-H/14 at 160 has an 11 x 11 grid.
    `blur_pool`: strided convolutions of 16 channels or more become `BlurredConv2d`.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0)
        raise UserError(f"model {name!r} is unknown to timm; the nearest names are {', '.join(near)}")
    is_deit3 = architecture.startswith("deit3_")
    arguments = {"num_classes": classes}
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        arguments["img_size"] = resolution
    if is_deit3:
        arguments |= {"init_values": layer_scale or 0.0, "block_fn": stochastic_depth.Block}
    elif drop_path:
        arguments["drop_path_rate"] = drop_path
    try:
        model = timm.create_model(architecture, **arguments)
    except (TypeError, AssertionError) as error:
        raise UserError(f"timm cannot build {name!r} at {resolution} px, drop_path {drop_path}: {error}") from error
    if is_deit3:
        _start_officially(model, drop_path)
    else:
        for name, module in list(model.named_modules()):
            if isinstance(module, DropPath):
                model.set_submodule(name, StochasticDepth(module.drop_prob))
    if blur_pool:
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= 16:
                model.set_submodule(name, BlurredConv2d(module))
    return model


class BlurredConv2d(nn.Conv2d):
    """A strided convolution of an image that is blurred before, by [1 2 1] in both directions, zeros beyond its border:
    BlurPool (Zhang 2019) as FFCV's ResNets have it.

    It takes over `conv`, also its weights' names. The kernel is saved with them: weights that were trained with the
    blur do not load into a network without it.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, device="meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        line = torch.tensor([1.0, 2.0, 1.0], device=conv.weight.device) / 4
        self.register_buffer("blur", line[:, None] * line)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.blur.to(x.dtype).expand(self.in_channels, 1, 3, 3)
        return super().forward(F.conv2d(x, kernel, padding=1, groups=self.in_channels))


def _start_officially(model, drop_path):
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    for block in model.blocks:
        block.drop_path1 = StochasticDepth(drop_path) if drop_path else nn.Identity()
        block.drop_path2 = StochasticDepth(drop_path) if drop_path else nn.Identity()


def grow(
    weights: dict[str, Tensor],
    model: nn.Module,
    *,
    head: Literal["keep", "new", "map"] = "keep",
    rows: list[int] | None = None,
) -> dict[str, Tensor]:
    """`weights` of the same architecture at another resolution, made to fit `model`; unchanged tensors are not copied.

    The position embedding is resampled to the model's grid (bicubic, corners not aligned, no antialiasing, as in the
    official code). `head`: keep takes the classifier of `weights`; new takes the model's own, fresh one; map does too
    and copies into its class k the class `rows[k]` of `weights`, where that is not -1.
    """
    grown = dict(weights)
    if "pos_embed" in weights and getattr(model, "pos_embed", None) is not None:
        grid = model.patch_embed.grid_size
        extra = model.pos_embed.shape[1] - math.prod(grid)  # tokens with an embedding and no place: 0 in deit3 models
        grown["pos_embed"] = _resample(weights["pos_embed"], grid, extra)
    if head != "keep":
        own = {key: value for key, value in model.state_dict().items() if _is_head(key, model)}
        grown = {key: value for key, value in grown.items() if not _is_head(key, model)} | own
    if head == "map":
        old = torch.tensor(rows, device=next(iter(own.values())).device)
        for key, value in own.items():
            known = (old >= 0).view(-1, *[1] * (value.ndim - 1))
            grown[key] = torch.where(known, weights[key].to(value.device)[old.clamp(min=0)], value)
    return grown


def head_size(weights: dict[str, Tensor], model: nn.Module) -> int:
    """The number of classes of `weights`, of the architecture of `model`; 0 if they have no classifier."""
    return next((len(value) for key, value in weights.items() if _is_head(key, model)), 0)


def _is_head(key, model):
    names = model.default_cfg["classifier"]
    return key.rpartition(".")[0] in ([names] if isinstance(names, str) else names)


def _resample(embedding, grid, extra):
    """(1, extra + tokens, channels) -> (1, extra + product of `grid`, channels)."""
    count = embedding.shape[1] - extra
    if count == math.prod(grid):
        return embedding
    side = math.isqrt(max(count, 0))
    if count < 1 or side * side != count:
        raise UserError(f"the weights' pos_embed has {count} places, which is no square grid; it cannot be resampled")
    places = embedding[:, extra:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    places = F.interpolate(places.float(), size=grid, mode="bicubic", align_corners=False).to(embedding.dtype)
    return torch.cat((embedding[:, :extra], places.flatten(2).transpose(1, 2)), dim=1)


def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies `weights` into `model`; each tensor must have its place and shape, else nothing is copied."""
    own = model.state_dict()
    faults = [f"{key}: missing" for key in own if key not in weights]
    faults += [f"{key}: not in the model" for key in weights if key not in own]
    faults += [
        f"{key}: {tuple(weights[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise UserError(f"{len(faults)} of the weights do not fit the model: {shown}{_advice(faults, own, model)}")
    model.load_state_dict(weights)


def _advice(faults, own, model):
    heads = sum(_is_head(key, model) for key in own)
    of_heads = sum(_is_head(fault.partition(":")[0], model) for fault in faults)
    if len(faults) == of_heads == heads:
        return ". For other classes set stage.head: new"
    return ". Is model.name the architecture of the weights?"


def count(model: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def tokens(model: nn.Module) -> int | None:
    """Patches of an image, without the class token; None for a model without patches."""
    return getattr(getattr(model, "patch_embed", None), "num_patches", None)


def macs(model: nn.Module, resolution: int) -> float:
    """Multiply-adds of one image's evaluation in units of 10^9 (the papers' "GFLOPs"): all matrix products, attention
    and convolutions. Nothing is computed: the pass runs on shapes alone, whatever device the weights are on."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(model.eval(), shapes, (image,))
    model.train(was_training)
    return counter.get_total_flops() / 2 / 1e9


def activations(model: nn.Module, resolution: int, precision: torch.dtype) -> tuple[int, int]:
    """Bytes that a forward pass of training keeps for its backward pass: (once, for each sample). `precision` is that
    of the matrix products; below float32, copies of the weights are what is kept once. Nothing is computed."""
    two, four = (_kept(model, resolution, precision, samples) for samples in (2, 4))
    return 2 * two - four, (four - two) // 2


def _kept(model, resolution, precision, samples):
    """Autograd is asked for each tensor that it saves; a storage counts once, the weights' own not at all."""
    storages, alive = {}, []  # a storage that is freed could lend its address to the next

    def keep(tensor):
        alive.append(tensor)
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    branches = stochastic_depth.branches(model)
    masks = [branch.scale for branch in branches]
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    was_training = model.training
    with FakeTensorMode():
        weights = {
            key: torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
            for key, value in state.items()
        }
        own = {value.untyped_storage()._cdata for value in weights.values()}
        for branch in branches:
            branch.scale = torch.ones(samples)
        autocast = torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            torch.func.functional_call(model.train(), weights, (torch.empty(samples, 3, resolution, resolution),))
    model.train(was_training)
    for branch, mask in zip(branches, masks, strict=True):
        branch.scale = mask
    return sum(size for storage, size in storages.items() if storage not in own)
