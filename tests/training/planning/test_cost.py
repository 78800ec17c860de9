"""References: parameter counts and multiply-adds of the official code, torchvision's published operation counts, what
autograd really keeps."""

import pytest
import torch
from torchvision.models import ResNet50_Weights

from ffcv_ops.errors import UserError
from training.network import model
from training.network.stochastic_depth import DepthMasks, StochasticDepth
from training.planning import cost

TI, S, M = "deit3_tiny_patch16_224", "deit3_small_patch16_224", "deit3_medium_patch16_224"
B, L, H = "deit3_base_patch16_224", "deit3_large_patch16_224", "deit3_huge_patch14_224"


def create(name="deit3_micro_patch16_224", *, resolution=48, classes=10, drop_path=0.0, layer_scale=1e-4):
    torch.manual_seed(0)
    return model.create(name, resolution=resolution, classes=classes, drop_path=drop_path, layer_scale=layer_scale)


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
        assert f"{cost.num_parameters(network) / 1e6:.3f}" == millions
    if gmacs is not None:
        assert f"{cost.gmacs(network, resolution):.2f}" == gmacs


def test_multiply_adds_of_a_convolutional_network():
    with torch.device("meta"):
        network = create("resnet50", resolution=224, classes=1000, drop_path=0.05)
    published = ResNet50_Weights.IMAGENET1K_V1.meta
    assert f"{cost.gmacs(network, 224):.3f}" == f"{published['_ops']:.3f}"
    assert cost.num_parameters(network) == published["num_params"]
    assert model.tokens(network) is None


def test_measuring_leaves_the_model_as_it_is():
    network = create(drop_path=0.2).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.device("meta"):
        expected = cost.gmacs(create(), 48)
    assert cost.gmacs(network, 48) == expected > 0
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
    once, each = cost.activation_bytes(network, resolution, precision)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    for samples in (3, 5):
        kept = saved_for_backward(network, resolution, samples, precision)
        if name == "resnet18":  # a CPU's batch norm keeps its statistics in float32 under autocast
            assert kept == pytest.approx(once + samples * each, rel=1e-3)
        else:
            assert kept == once + samples * each
    assert (once > cost.num_parameters(network)) == (precision == torch.bfloat16)  # two bytes a weight


def test_activations_are_the_same_in_the_middle_of_training_with_subsets():
    """A resolution that rises within a stage is measured then."""
    network = create(drop_path=0.5).train()
    expected = cost.activation_bytes(network, 48, torch.float32)
    DepthMasks(network, subset=True).set(0, 0, 0, 32, torch.device("cpu"))
    inputs = torch.randn(32, 3, 48, 48)
    before = network(inputs)
    assert cost.activation_bytes(network, 48, torch.float32) == expected
    assert torch.equal(network(inputs), before)  # with the same masks


@pytest.mark.parametrize(
    ("name", "resolution"),
    [("deit3_micro_patch16_224", 8), ("mixer_s16_224", 8), ("convnext_atto", 8), ("densenet121", 8), ("test_vit", 40)],
)
def test_a_resolution_that_the_model_cannot_take_is_one_line(name, resolution):
    with torch.device("meta"):
        network = create(name, resolution=resolution)
    network.train()
    for count in (cost.check_resolution, cost.gmacs):
        with pytest.raises(UserError, match=rf"{name} cannot take images of {resolution} x {resolution} px") as refusal:
            count(network, resolution)
        assert "\n" not in str(refusal.value)
    assert network.training
