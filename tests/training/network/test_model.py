"""References: the official forward pass written out in float64, timm's own networks, SciPy's correlation."""

import math

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import correlate
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F

from ffcv_ops.errors import UserError
from training.network import model
from training.network.adapt_weights import load_weights
from training.network.stochastic_depth import StochasticDepth


def create(name="deit3_micro_patch16_224", *, resolution=48, classes=10, drop_path=0.0, layer_scale=1e-4):
    torch.manual_seed(0)
    return model.create(name, resolution=resolution, classes=classes, drop_path=drop_path, layer_scale=layer_scale)


S = "deit3_small_patch16_224"


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


def test_big_visions_vit_is_initialized_as_there():
    """Positions by the formula of its models/vit.py in float64, Xavier's and LeCun's laws, a head of zeros."""
    network = create("vit_small_patch16_sincos_224", resolution=64, classes=7)
    omega = 1 / 10_000 ** (np.arange(96) / 95)
    y, x = (place.reshape(-1, 1) * omega for place in np.mgrid[:4, :4])
    positions = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    assert np.abs(network.pos_embed[0].numpy() - positions).max() < 1e-5
    assert not network.pos_embed.requires_grad and network.cls_token is None
    block = network.blocks[5]
    for part, fans in ((block.attn.qkv.weight[:384], 768), (block.attn.proj.weight, 768), (block.mlp.fc1.weight, 1920)):
        assert part.abs().max().item() == pytest.approx(math.sqrt(6 / fans), rel=1e-3)
        assert part.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.01)
    assert network.patch_embed.proj.weight.std().item() == pytest.approx(math.sqrt(1 / 768), rel=0.01)
    assert not network.head.weight.any() and not network.head.bias.any()
    nn.init.normal_(network.head.weight)
    image = torch.randn(2, 3, 64, 64)
    tokens = network.patch_embed(image) + network.pos_embed
    expected = network.head(network.norm(network.blocks(tokens)).mean(1))
    assert torch.allclose(network(image), expected, atol=1e-5)


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
        load_weights(plain, own)
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
