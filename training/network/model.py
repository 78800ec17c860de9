"""Builds the network of a stage.

In: timm's name of an architecture, the stage's resolution (pixels), stochastic depth and the number of classes.
Out: an `nn.Module` that takes float images (n, 3, resolution, resolution) and returns logits (n, classes).

`deit3_*` models start as the official code starts them, where timm differs in three places: LayerScale begins at 1e-4,
stochastic depth has one rate in every block (timm raises it from 0 in the first), and the class token is drawn with
standard deviation .02. Every other timm model is built as timm builds it, with the rates that timm gives its branches;
only the draws of stochastic depth are ours in all models.
"""

import ast
import difflib

import timm
import torch
from timm import layers
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import Eva, VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from config.schema import ModelConfig
from ffcv_ops.errors import UserError
from training.network import stochastic_depth
from training.network.stochastic_depth import StochasticDepth

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
RESIZABLE = (VisionTransformer, Eva)  # models with patches that may go on with images of another size
# Read by timm's register_model: what it knows of the models below.
default_cfgs = generate_default_cfgs({name: dict(_SETTINGS) for name in (*SHAPES, "vit_small_patch16_sincos_224")})


def _deit3(name, pretrained, arguments):
    official = {"no_embed_class": True, "init_values": 1e-4}
    return build_model_with_cfg(VisionTransformer, name, pretrained, **(SHAPES[name] | official | arguments))


@register_model
def deit3_tiny_patch16_224(pretrained=False, **arguments) -> VisionTransformer:
    """ViT-Ti/16 of the official code, which timm lacks: 5.7 million parameters."""
    return _deit3("deit3_tiny_patch16_224", pretrained, arguments)


@register_model
def deit3_micro_patch16_224(pretrained=False, **arguments) -> VisionTransformer:
    """Ours, for CPUs: 1.3 million parameters besides the head; heads of 64 channels as in the paper's models."""
    return _deit3("deit3_micro_patch16_224", pretrained, arguments)


@register_model
def vit_small_patch16_sincos_224(pretrained=False, **arguments) -> VisionTransformer:
    """ViT-S/16 as big_vision builds and initializes it (arXiv 2205.01580): no class token but the mean of the patches,
    and positions that are not trained."""
    shape = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "act_layer": "gelu_tanh"}
    shape |= {"class_token": False, "global_pool": "avg", "fc_norm": False, "weight_init": "jax"}
    name = "vit_small_patch16_sincos_224"
    model = build_model_with_cfg(VisionTransformer, name, pretrained, **(shape | arguments))
    for block in model.blocks:  # timm takes the three for one matrix, whose values are smaller
        for part in block.attn.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
    positions = sincos(model.patch_embed.grid_size, model.embed_dim).to(model.pos_embed)
    model.pos_embed = nn.Parameter(positions, requires_grad=False)
    return model


def sincos(grid: tuple[int, int], width: int) -> Tensor:
    """(1, places, width): sine and cosine of a place's column and row at frequencies from 1 down to 1e-4 (MoCo v3)."""
    frequencies = 1e-4 ** (torch.arange(width // 4) / (width // 4 - 1))
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    x, y = (places.flatten()[:, None] * frequencies for places in (columns, rows))
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)[None]


def of_recipe(config: ModelConfig, **options) -> nn.Module:
    """The network that the recipe's `model` names. options: `create`'s resolution, classes and drop_path."""
    more = {"layer_scale": config.layer_scale, "blur_pool": config.blur_pool, "args": config.args}
    return create(config.name, **options, **more)


def arguments(text: str | None) -> dict[str, object]:
    """`model.args`: "patch_size=8, depth=6" -> {"patch_size": 8, "depth": 6}; values are Python's literals."""
    try:
        call = ast.parse(f"dict({text or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        return {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError, TypeError) as error:
        raise UserError(f"model.args {text!r:.200}: it must be name=value, name=value, ...") from error


def create(
    name: str,
    *,
    resolution: int,
    classes: int,
    drop_path: float,
    layer_scale: float | None,
    blur_pool: bool = False,
    args: str | None = None,
) -> nn.Module:
    """A freshly initialized model; its random weights come from torch's global generator.

    `layer_scale` is for deit3 models, None builds them without it. A resolution that the patch does not divide leaves
    the last rows and columns of the image unused, as in the official code: ViT-H/14 at 160 has an 11 x 11 grid.
    `blur_pool`: strided convolutions of 16 channels or more become `BlurredConv2d`. `args`: further `arguments` of
    timm's model.
    UserError where timm does not know the name or cannot build it so.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0)
        raise UserError(f"model {name!r} is unknown to timm; the nearest names are {', '.join(near)}")
    is_deit3 = architecture.startswith("deit3_")
    options = {"num_classes": classes}
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        options["img_size"] = resolution
    if is_deit3:
        options |= {"init_values": layer_scale or 0.0, "block_fn": stochastic_depth.Block, "embed_layer": PatchEmbed}
    elif drop_path:
        options["drop_path_rate"] = drop_path
    own = arguments(args)
    if taken := sorted(own.keys() & options.keys()):
        raise UserError(f"model.args: {', '.join(taken)} follow from other keys")
    try:
        model = timm.create_model(architecture, **options, **own)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        with_args = f" with {args}" if args else ""
        raise UserError(
            f"timm cannot build {name!r}{with_args} at {resolution} px, drop_path {drop_path}: {error}"
        ) from error
    if is_deit3:
        _init_as_officially(model, drop_path)
    else:
        # timm's DropPath draws from the global generator, so a mask would depend on what was drawn before it.
        for path, module in list(model.named_modules()):
            if isinstance(module, layers.DropPath):
                model.set_submodule(path, StochasticDepth(module.drop_prob))
    if blur_pool:
        # The stem has 3 channels, where FFCV's ResNets do not blur either.
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= 16:
                model.set_submodule(path, BlurredConv2d(module))
    return model


def _init_as_officially(model, drop_path):
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    for block in model.blocks:
        block.drop_path1 = StochasticDepth(drop_path) if drop_path else nn.Identity()
        block.drop_path2 = StochasticDepth(drop_path) if drop_path else nn.Identity()


class PatchEmbed(layers.PatchEmbed):
    """timm's, which also takes patches that are cut already, (n, patches, 3 side^2): then it is one matrix product,
    where a GPU's convolution of three channels is slow."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return super().forward(x)
        return self.norm(F.linear(x, self.proj.weight.flatten(1), self.proj.bias))


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


def checkpoint_blocks(model: nn.Module, name: str) -> None:
    """Has the backward pass compute what is inside of a block once more instead of keeping it (timm's)."""
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise UserError(f"speed.grad_checkpointing: timm's {name} has none") from error


def patch_side(model: nn.Module) -> int | None:
    """Pixels, where the model also takes images that are cut into patches."""
    embed = getattr(model, "patch_embed", None)
    return embed.patch_size[0] if isinstance(embed, PatchEmbed) else None


def tokens(model: nn.Module) -> int | None:
    """Patches of an image, without the class token; None for a model without patches."""
    return getattr(getattr(model, "patch_embed", None), "num_patches", None)
