"""References: parameter counts and multiply-adds of the official code, torchvision's published operation counts, the
official forward pass written out in float64, bicubic resampling written out likewise."""

import math

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import correlate
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights

from ffcv_ops.errors import UserError
from training import model
from training.stochastic_depth import StochasticDepth


def create(name="deit3_micro_patch16_224", *, resolution=48, classes=10, drop_path=0.0, layer_scale=1e-4):
    torch.manual_seed(0)
    return model.create(name, resolution=resolution, classes=classes, drop_path=drop_path, layer_scale=layer_scale)


# --- size and cost -------------------------------------------------------------------------------------------------

TI, S, M = "deit3_tiny_patch16_224", "deit3_small_patch16_224", "deit3_medium_patch16_224"
B, L, H = "deit3_base_patch16_224", "deit3_large_patch16_224", "deit3_huge_patch14_224"


@pytest.mark.parametrize(
    ("name", "resolution", "millions", "tokens", "gmacs"),  # None: not published for that resolution
    [
        (TI, 224, "5.722", 196, "1.25"),
        (TI, 384, "5.795", 576, None),
        (S, 160, None, 100, "2.27"),
        (S, 192, None, 144, "3.32"),
        (S, 224, "22.059", 196, "4.60"),
        (S, 384, "22.205", 576, "15.49"),
        (M, 224, "38.850", 196, "7.99"),
        (B, 128, None, 64, "5.64"),
        (B, 160, None, 100, "8.83"),
        (B, 192, "86.545", 144, "12.79"),
        (B, 224, "86.585", 196, "17.56"),
        (B, 384, "86.877", 576, "55.48"),
        (L, 128, None, 64, "19.89"),
        (L, 160, None, 100, "31.08"),
        (L, 192, "304.322", 144, "44.94"),
        (L, 224, "304.375", 196, "61.55"),
        (L, 384, "304.764", 576, "191.07"),
        (H, 126, "631.902", 81, "52.20"),
        (H, 128, "631.902", 81, "52.20"),
        (H, 154, "631.954", 121, "78.07"),
        (H, 160, "631.954", 121, "78.07"),
        (H, 224, "632.126", 256, "167.30"),
    ],
)
def test_parameters_tokens_and_multiply_adds(name, resolution, millions, tokens, gmacs):
    with torch.device("meta"):
        network = create(name, resolution=resolution, classes=1000)
        assert network(torch.empty(2, 3, resolution, resolution)).shape == (2, 1000)
    assert model.tokens(network) == tokens
    if millions is not None:
        assert f"{model.count(network) / 1e6:.3f}" == millions
    if gmacs is not None:
        assert f"{model.macs(network, resolution):.2f}" == gmacs


def test_multiply_adds_of_a_convolutional_network():
    with torch.device("meta"):
        network = create("resnet50", resolution=224, classes=1000, drop_path=0.05)
    published = ResNet50_Weights.IMAGENET1K_V1.meta
    assert f"{model.macs(network, 224):.3f}" == f"{published['_ops']:.3f}"
    assert model.count(network) == published["num_params"]
    assert model.tokens(network) is None


def test_measuring_leaves_the_model_as_it_is():
    network = create(drop_path=0.2).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.device("meta"):
        expected = model.macs(create(), 48)
    assert model.macs(network, 48) == expected > 0
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def saved_for_backward(network, resolution, samples, precision):
    """Bytes that autograd really keeps of a pass through the very weights."""
    kept, own = {}, {value.data_ptr() for value in network.state_dict().values()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    for module in network.modules():
        if isinstance(module, StochasticDepth):
            module.scale = torch.ones(samples)
    autocast = torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        logits = network(torch.randn(samples, 3, resolution, resolution))
    assert logits.requires_grad
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "resolution"), [("deit3_micro_patch16_224", 96), ("deit_tiny_patch16_224", 64), ("resnet18", 64)]
)
def test_activations_are_what_autograd_keeps(name, resolution, precision):
    network = create(name, resolution=resolution, drop_path=0.0 if name == "resnet18" else 0.1).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    once, each = model.activations(network, resolution, precision)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    for samples in (3, 5):
        kept = saved_for_backward(network, resolution, samples, precision)
        if name == "resnet18":  # a CPU's batch norm keeps its statistics in float32 under autocast
            assert kept == pytest.approx(once + samples * each, rel=1e-3)
        else:
            assert kept == once + samples * each
    assert (once > model.count(network)) == (precision == torch.bfloat16)  # two bytes a weight


# --- what a fresh model is -----------------------------------------------------------------------------------------


def test_fresh_weights_follow_the_official_laws():
    network = create(S, resolution=64, classes=1000)
    width = 384
    for name, value in network.named_parameters():
        if name.endswith("gamma"):
            assert (value == 1e-4).all()
        elif name.startswith("patch_embed"):
            bound = 1 / math.sqrt(3 * 16 * 16)  # torch's own start of a convolution: uniform
            assert bound * 0.97 < value.abs().max() <= bound
        elif name.endswith("bias"):
            assert (value == 0).all()
        elif "norm" in name:
            assert (value == 1).all()
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.12 if value.numel() <= width else 0.03), name
            assert abs(value.mean().item()) < 0.1 * 0.02 if value.numel() > width else True
    assert sum(name.endswith("gamma") for name, _ in network.named_parameters()) == 24


def test_stochastic_depth_has_one_rate_in_every_block_and_none_at_rate_0():
    for rate, kind in ((0.3, StochasticDepth), (0.0, nn.Identity)):
        places = [place for block in create(drop_path=rate).blocks for place in (block.drop_path1, block.drop_path2)]
        assert len(places) == 12
        assert {type(place) for place in places} == {kind}
        assert all(rate == 0 or place.rate == rate for place in places)


def test_layer_scale_is_a_choice():
    assert not any(name.endswith("gamma") for name, _ in create(layer_scale=None).named_parameters())
    gammas = [value for name, value in create(layer_scale=0.5).named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 12
    assert all((gamma == 0.5).all() for gamma in gammas)


def layer_norm(x, weights, prefix):
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return normed * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"]


def linear(x, weights, prefix):
    return x @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"]


def official_forward(image, weights, *, patch, depth, heads):
    """One image (3, size, size) -> logits, in float64: the official ViT with LayerScale, written out."""
    side = image.shape[1] // patch
    cut = image[:, : side * patch, : side * patch].reshape(3, side, patch, side, patch)
    patches = cut.transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    kernel = weights["patch_embed.proj.weight"].reshape(-1, patches.shape[1])
    x = patches @ kernel.T + weights["patch_embed.proj.bias"] + weights["pos_embed"][0]
    x = np.concatenate([weights["cls_token"][0], x])
    for block in (f"blocks.{number}" for number in range(depth)):
        normed = layer_norm(x, weights, f"{block}.norm1")
        query, key, value = np.split(linear(normed, weights, f"{block}.attn.qkv"), 3, 1)
        joined = []
        for q, k, v in zip(*(np.split(part, heads, 1) for part in (query, key, value)), strict=True):
            scores = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            joined.append(scores / scores.sum(1, keepdims=True) @ v)
        x = x + weights[f"{block}.ls1.gamma"] * linear(np.concatenate(joined, 1), weights, f"{block}.attn.proj")
        hidden = linear(layer_norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1")
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        x = x + weights[f"{block}.ls2.gamma"] * linear(hidden, weights, f"{block}.mlp.fc2")
    return linear(layer_norm(x, weights, "norm")[0], weights, "head")


@pytest.mark.parametrize(
    ("name", "depth", "heads"), [("deit3_micro_patch16_224", 6, 2), ("deit3_tiny_patch16_224", 12, 3)]
)
def test_our_models_compute_the_official_forward_pass(name, depth, heads):
    network = create(name, resolution=52, layer_scale=0.7).double().eval()  # 52 = 3 patches and 4 unused pixels
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    image = torch.randn(1, 3, 52, 52, dtype=torch.float64)
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    expected = official_forward(image[0].numpy(), weights, patch=16, depth=depth, heads=heads)
    with torch.no_grad():
        assert network(image)[0].numpy() == pytest.approx(expected, rel=1e-9)


def test_pixels_beyond_the_last_whole_patch_are_unused():
    network = create(resolution=40).eval()  # 40 = 2 patches of 16 and 8 pixels
    image = torch.randn(1, 3, 40, 40)
    beyond, within = image.clone(), image.clone()
    beyond[:, :, 32:] = beyond[:, :, :, 32:] = 9.0
    within[:, :, 31] = 9.0
    with torch.no_grad():
        assert torch.equal(network(image), network(beyond))
        assert not torch.equal(network(image), network(within))


def test_other_timm_models_are_built_as_timm_builds_them():
    network = create("vit_tiny_patch16_224", resolution=64, drop_path=0.11)
    rates = [getattr(block.drop_path1, "rate", 0.0) for block in network.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.11, 12).tolist())
    assert model.tokens(network) == 16
    residual = create("resnet50", resolution=64, drop_path=0.05).eval()
    torch.manual_seed(0)
    timms = timm.create_model("resnet50", num_classes=10, drop_path_rate=0.05).eval()
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(residual(image), timms(image))
    rates = [module.rate for module in residual.modules() if isinstance(module, StochasticDepth)]
    assert rates == [module.drop_prob for module in timms.modules() if isinstance(module, DropPath)]
    assert len(rates) == 15


def test_blur_pool_blurs_before_the_six_strided_convolutions():
    """Against SciPy's correlation and timm's own convolution of the result; everything else is timm's network."""
    plain, blurred = (
        model.create("resnet50", resolution=64, classes=10, drop_path=0.0, layer_scale=None, blur_pool=blur)
        for blur in (False, True)
    )
    kinds = {name: type(module) for name, module in blurred.named_modules() if isinstance(module, nn.Conv2d)}
    found = {name for name, kind in kinds.items() if kind is model.BlurredConv2d}
    assert found == {f"layer{k}.0.{part}" for k in (2, 3, 4) for part in ("conv2", "downsample.0")}
    own = dict(blurred.state_dict())
    assert own.keys() - plain.state_dict().keys() == {f"{name}.blur" for name in found}
    with pytest.raises(UserError, match="6 of the weights do not fit"):
        model.load(plain, own)
    x = torch.randn(2, 128, 9, 12, generator=torch.Generator().manual_seed(0))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    planes = x.double().numpy().reshape(-1, 9, 12)
    expected = np.stack([correlate(plane, kernel, mode="constant") for plane in planes]).reshape(x.shape)
    conv = blurred.get_submodule("layer2.0.conv2")
    with torch.no_grad():
        reference = F.conv2d(torch.from_numpy(expected), conv.weight.double(), stride=2, padding=1)
        torch.testing.assert_close(conv(x).double(), reference, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(conv(x), F.conv2d(x, conv.weight, stride=2, padding=1), atol=1e-3)


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(UserError, match=r"deit3_smal_patch16_224.*deit3_small_patch16_224"):
        create("deit3_smal_patch16_224")


def test_a_model_without_stochastic_depth_refuses_a_rate():
    with torch.device("meta"):
        assert create("vgg11", resolution=224, drop_path=0.0).num_classes == 10
        with pytest.raises(UserError, match=r"vgg11.*drop_path"):
            create("vgg11", resolution=224, drop_path=0.1)


# --- growing and loading -------------------------------------------------------------------------------------------


def bicubic(plane, size):
    """Cubic convolution (a = -0.75) of a square float64 plane, corners not aligned, edges repeated, no antialiasing."""

    def kernel(t):
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    old = len(plane)
    matrix = np.zeros((size, old))
    for row in range(size):
        centre = (row + 0.5) * old / size - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[row, min(max(tap, 0), old - 1)] += kernel(centre - tap)
    return matrix @ plane @ matrix.T


@pytest.mark.parametrize(("before", "after"), [(192, 224), (96, 64), (48, 384)])
def test_position_embedding_is_resampled_bicubically(before, after):
    weights, network = create(resolution=before).state_dict(), create(resolution=after)
    grown = model.grow(weights, network)
    old, new = before // 16, after // 16
    for channel in (0, 77):
        plane = weights["pos_embed"][0, :, channel].reshape(old, old).double().numpy()
        assert grown["pos_embed"][0, :, channel].numpy() == pytest.approx(bicubic(plane, new).ravel(), abs=1e-6)
    assert all(grown[key] is value for key, value in weights.items() if key != "pos_embed")
    model.load(network, grown)
    assert torch.equal(network.pos_embed, grown["pos_embed"])


def test_equal_sizes_keep_the_very_tensors():
    weights = create().state_dict()
    assert all(grown is weights[key] for key, grown in model.grow(weights, create()).items())


def test_tokens_without_a_place_keep_their_embedding():
    weights = timm.create_model("deit_tiny_patch16_224", img_size=64).state_dict()  # embeds its class token too
    grown = model.grow(weights, timm.create_model("deit_tiny_patch16_224", img_size=96))["pos_embed"]
    assert grown.shape == (1, 37, 192)
    assert torch.equal(grown[:, 0], weights["pos_embed"][:, 0])
    plane = weights["pos_embed"][0, 1:, 5].reshape(4, 4).double().numpy()
    assert grown[0, 1:, 5].numpy() == pytest.approx(bicubic(plane, 6).ravel(), abs=1e-6)


def test_a_grid_that_is_no_square_is_refused():
    weights = dict(create().state_dict())
    weights["pos_embed"] = torch.zeros(1, 12, 128)
    with pytest.raises(UserError, match="12 places"):
        model.grow(weights, create(resolution=96))


@pytest.mark.parametrize("name", ["deit3_micro_patch16_224", "resnet18"])
def test_a_new_head_is_the_models_own(name):
    weights, network = create(name, classes=7).state_dict(), create(name, classes=10)
    with pytest.raises(UserError, match=r"2 of the weights.*\(7,.*\(10,.*set stage.head: new"):
        model.load(network, model.grow(weights, network))
    fresh = {key: value.clone() for key, value in network.get_classifier().state_dict().items()}
    nn.init.ones_(next(iter(network.parameters())))
    model.load(network, model.grow(weights, network, head="new"))
    loaded = network.state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in network.get_classifier().state_dict().items())
    assert all(torch.equal(value, loaded[key]) for key, value in weights.items() if value.shape == loaded[key].shape)


def test_a_mapped_head_takes_the_rows_of_the_same_classes():
    weights, network = create(classes=7).state_dict(), create(classes=4)
    own = {key: value.clone() for key, value in network.state_dict().items()}
    grown = model.grow(weights, network, head="map", rows=[5, -1, 0, 0])
    for key in ("head.weight", "head.bias"):
        assert torch.equal(grown[key][[0, 2, 3]], weights[key][[5, 0, 0]])
        assert torch.equal(grown[key][1], own[key][1])
    model.load(network, grown)
    assert torch.equal(network.head.weight[0], weights["head.weight"][5])
    assert (model.head_size(weights, network), model.head_size(own, network)) == (7, 4)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_copied():
    network = create()
    weights = {key: value + 1 for key, value in network.state_dict().items()}
    before = network.cls_token.clone()
    del weights["norm.bias"]
    weights["dist_token"] = torch.zeros(1)
    weights["head.bias"] = torch.zeros(11)
    with pytest.raises(UserError) as caught:
        model.load(network, weights)
    message = str(caught.value)
    for part in ("3 of the weights", "norm.bias: missing", "dist_token: not in", "head.bias: (11,)", "(10,)"):
        assert part in message
    assert "\n" not in message
    assert torch.equal(network.cls_token, before)
