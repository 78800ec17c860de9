"""References: bicubic resampling written out in float64; the outputs of timm's networks; timm's lists of classes."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from ffcv_ops.errors import UserError
from training.network import model
from training.network.adapt_weights import adapt_state_dict, load_weights, match_classes, num_classes


def create(name="deit3_micro_patch16_224", *, resolution=48, classes=10, drop_path=0.0, layer_scale=1e-4):
    torch.manual_seed(0)
    return model.create(name, resolution=resolution, classes=classes, drop_path=drop_path, layer_scale=layer_scale)


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
    grown = adapt_state_dict(weights, network)
    old, new = before // 16, after // 16
    for channel in (0, 77):
        plane = weights["pos_embed"][0, :, channel].reshape(old, old).double().numpy()
        assert grown["pos_embed"][0, :, channel].numpy() == pytest.approx(bicubic(plane, new).ravel(), abs=1e-6)
    assert all(grown[key] is value for key, value in weights.items() if key != "pos_embed")
    load_weights(network, grown)
    assert torch.equal(network.pos_embed, grown["pos_embed"])


def test_equal_sizes_keep_the_very_tensors():
    weights = create().state_dict()
    assert all(grown is weights[key] for key, grown in adapt_state_dict(weights, create()).items())


def test_tokens_without_a_place_keep_their_embedding():
    weights = timm.create_model("deit_tiny_patch16_224", img_size=64).state_dict()  # embeds its class token too
    grown = adapt_state_dict(weights, timm.create_model("deit_tiny_patch16_224", img_size=96))["pos_embed"]
    assert grown.shape == (1, 37, 192)
    assert torch.equal(grown[:, 0], weights["pos_embed"][:, 0])
    plane = weights["pos_embed"][0, 1:, 5].reshape(4, 4).double().numpy()
    assert grown[0, 1:, 5].numpy() == pytest.approx(bicubic(plane, 6).ravel(), abs=1e-6)


@pytest.mark.parametrize("resolution", [64, 96])
def test_a_class_tokens_position_is_added_to_the_class_token(resolution):
    """DeiT's weights in a DeiT III network, which has no such position: the very outputs of timm's DeiT."""
    torch.manual_seed(0)
    deit = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=10).eval()
    for parameter in deit.parameters():
        nn.init.normal_(parameter, std=0.1)
    wanted = timm.create_model("deit_tiny_patch16_224", img_size=resolution, num_classes=10).eval()
    load_weights(wanted, adapt_state_dict(deit.state_dict(), wanted))
    network = create("deit3_tiny_patch16_224", resolution=resolution, layer_scale=None).eval()
    said = []
    load_weights(network, adapt_state_dict(deit.state_dict(), network, say=said.append))
    image = torch.randn(2, 3, resolution, resolution)
    with torch.no_grad():
        torch.testing.assert_close(network(image), wanted(image), rtol=1e-4, atol=1e-4)
        assert wanted(image).std() > 0.1
    assert ["class token's position" in line for line in said] == [True]


@pytest.mark.parametrize("shape", [(), (4,), (1, 4, 4, 128)])
def test_an_embedding_of_another_kind_is_listed(shape):
    network = create()
    weights = {**network.state_dict(), "pos_embed": torch.zeros(shape)}
    with pytest.raises(UserError, match="1 of the weights do not fit the model: pos_embed"):
        load_weights(network, adapt_state_dict(weights, network))


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.bool])
def test_numbers_of_another_kind_are_refused(kind):
    network = create()
    weights = {key: value.to(kind) if key == "norm.bias" else value for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"norm\.bias: numbers of {kind}, the model has torch\.float32"):
        load_weights(network, weights)
    half = {key: value.half() for key, value in network.state_dict().items()}
    load_weights(network, half)


def test_a_grid_that_is_no_square_is_refused():
    weights = dict(create().state_dict())
    weights["pos_embed"] = torch.zeros(1, 12, 128)
    with pytest.raises(UserError, match="12 places"):
        adapt_state_dict(weights, create(resolution=96))


@pytest.mark.parametrize("name", ["deit3_micro_patch16_224", "resnet18"])
def test_a_new_head_is_the_models_own(name):
    weights, network = create(name, classes=7).state_dict(), create(name, classes=10)
    with pytest.raises(UserError, match=r"2 of the weights.*\(7,.*\(10,.*set stage.head: new"):
        load_weights(network, adapt_state_dict(weights, network))
    fresh = {key: value.clone() for key, value in network.get_classifier().state_dict().items()}
    nn.init.ones_(next(iter(network.parameters())))
    load_weights(network, adapt_state_dict(weights, network, head="new"))
    loaded = network.state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in network.get_classifier().state_dict().items())
    assert all(torch.equal(value, loaded[key]) for key, value in weights.items() if value.shape == loaded[key].shape)


def test_a_mapped_head_takes_the_rows_of_the_same_classes():
    weights, network = create(classes=7).state_dict(), create(classes=4)
    own = {key: value.clone() for key, value in network.state_dict().items()}
    grown = adapt_state_dict(weights, network, head="map", class_map=[5, -1, 0, 0])
    for key in ("head.weight", "head.bias"):
        assert torch.equal(grown[key][[0, 2, 3]], weights[key][[5, 0, 0]])
        assert torch.equal(grown[key][1], own[key][1])
    load_weights(network, grown)
    assert torch.equal(network.head.weight[0], weights["head.weight"][5])
    assert (num_classes(weights, network), num_classes(own, network)) == (7, 4)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"pos_embed": torch.zeros(1, 10, 7)}, r"\(1, 4, 7\)|no square grid"),
        ({"pos_embed": torch.zeros(2, 5, 128)}, "no square grid"),
        ({"pos_embed": torch.zeros(1, 0, 128)}, r"pos_embed: \(1, 0, 128\), the model has"),
        ({"pos_embed": torch.zeros(1, 9, 128, dtype=torch.int32)}, "pos_embed: numbers of torch.int32"),
        ({"cls_token": torch.zeros(1, 1, 128, dtype=torch.int64)}, "cls_token: numbers of torch.int64"),
        (
            {"head.weight": torch.zeros(4, 128, dtype=torch.int32)},
            "head.weight(: numbers| has 4 classes) of torch.int32",
        ),
        ({"head.weight": torch.zeros(0, 128)}, r"head.weight(: \(0, 128\), the model| has 0 classes of)"),
        ({"head.bias": torch.zeros(2)}, r"head.bias(: \(2,\), the model| has 2 classes of)"),
    ],
)
@pytest.mark.parametrize("head", ["keep", "map"])
def test_odd_weights_are_refused(odd, said, head):
    network = create(classes=4)
    with pytest.raises(UserError, match=said):
        given = network.state_dict() | odd
        load_weights(network, adapt_state_dict(given, network, head=head, class_map=[0, 1, 2, 3]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("head", ["keep", "map"])
def test_weights_of_any_precision_are_taken(dtype, head):
    weights, network = create(classes=4).state_dict(), create(classes=4)
    given = {key: value.to(dtype) for key, value in weights.items()}
    load_weights(network, adapt_state_dict(given, network, head=head, class_map=[0, 1, 2, 3]))
    assert all(torch.equal(value, given[key].float()) for key, value in network.state_dict().items())


def test_a_head_without_all_its_parts_is_not_mapped():
    weights, network = create(classes=7).state_dict(), create(classes=4)
    for head in ({"head.weight": torch.tensor(1.0)}, {"head.weight": torch.zeros(7, 3)}):
        with pytest.raises(UserError, match=r"head: map needs head\.weight in the weights, of \(128,\) for each class"):
            adapt_state_dict({**weights, **head}, network, head="map", class_map=[0, 1, 2, 3])
    del weights["head.bias"]
    with pytest.raises(UserError, match=r"head: map needs head\.bias"):
        adapt_state_dict(weights, network, head="map", class_map=[0, 1, 2, 3])
    assert num_classes({"head.weight": torch.tensor(1.0)}, network) == 0


def test_weights_that_do_not_fit_are_listed_and_nothing_is_copied():
    network = create()
    weights = {key: value + 1 for key, value in network.state_dict().items()}
    before = network.cls_token.clone()
    del weights["norm.bias"]
    weights["dist_token"] = torch.zeros(1)
    weights["head.bias"] = torch.zeros(11)
    with pytest.raises(UserError) as caught:
        load_weights(network, weights)
    message = str(caught.value)
    for part in ("3 of the weights", "norm.bias: missing", "dist_token: not in", "head.bias: (11,)", "(10,)"):
        assert part in message
    assert "\n" not in message
    assert torch.equal(network.cls_token, before)


# --- classes -------------------------------------------------------------------------------------------------------


def test_rows_are_matched_by_name():
    rows = match_classes(3, 4, old_names=("cat", "dog", "owl"), new_names=("owl", "emu", "cat", "fox"))
    assert rows == [2, -1, 0, -1]


def test_names_that_are_not_given_are_timms_lists():
    rows = match_classes(21841, 1000)
    old, new = ImageNetInfo("imagenet-22k").label_names(), ImageNetInfo("imagenet-1k").label_names()
    assert sum(row >= 0 for row in rows) == 999  # the teddy bear has another number there
    assert all(old[row] == name for row, name in zip(rows, new, strict=True) if row >= 0)
    assert rows[0] != 0
    few = match_classes(21841, 2, old_names=("short", "list"), new_names=(new[5], "n0"))
    assert few == [rows[5], -1]


def test_classes_without_names_are_refused():
    with pytest.raises(UserError, match="names of 19167 classes"):
        match_classes(19167, 1000)
    with pytest.raises(UserError, match="names of 7 classes"):
        match_classes(1000, 7)
    with pytest.raises(UserError, match="none of the classes a,"):
        match_classes(1000, 2, new_names=("a", "b"))
