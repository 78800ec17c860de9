"""The laws of the crops against torchvision's, as distributions and, where nothing is random, exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import CenterCrop, RandomCrop, RandomResizedCrop, Resize

from ffcv_ops.kernels import crops
from ffcv_ops.rng import RandomKey

DRAWS = 6000
SIZES = [(375, 500), (500, 375), (64, 64), (40, 400)]


def boxes(height, width, scale=(0.08, 1.0)):
    views = [crops.random_resized_crop(height, width, 224, *scale, RandomKey(1, d)) for d in range(DRAWS)]
    return np.array([(v.box_top, v.box_left, v.box_height, v.box_width) for v in views])


def torchvision_boxes(height, width, scale=(0.08, 1.0)):
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    return np.array([RandomResizedCrop.get_params(blank, scale, (3 / 4, 4 / 3)) for _ in range(DRAWS)])


@pytest.mark.parametrize("height, width", SIZES)
def test_rrc_boxes_follow_torchvisions_law(height, width):
    ours, reference = boxes(height, width), torchvision_boxes(height, width)
    for column, name in enumerate(["top", "left", "height", "width"]):
        assert stats.ks_2samp(ours[:, column], reference[:, column]).pvalue > 1e-3, name
    for value in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]):
        assert stats.ks_2samp(value(ours), value(reference)).pvalue > 1e-3


def test_rrc_scale_is_used():
    areas = boxes(300, 400, (0.5, 0.6))[:, 2:].prod(1) / 120000
    assert 0.49 < areas.min() < 0.51 < 0.59 < areas.max() < 0.61


@pytest.mark.parametrize("height, width", [(10, 400), (400, 10), (1, 50), (50, 1), (1, 1)])
def test_rrc_fallback_equals_torchvisions(height, width):
    """So thin that all ten tries fail: the centered box of an allowed aspect."""
    for draw in range(50):
        view = crops.random_resized_crop(height, width, 224, 0.9, 1.0, RandomKey(1, draw))
        expected = RandomResizedCrop.get_params(torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3))
        if min(height, width) > 1 or height == width:
            assert (view.box_top, view.box_left, view.box_height, view.box_width) == tuple(expected)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 334), (256, 256), (100, 700)])
@pytest.mark.parametrize("size", [224, 128])
def test_src_windows_follow_the_padded_random_crop(height, width, size):
    """Resize(size), then RandomCrop(size, padding=4): positions and their law."""
    resized = Resize(size)(torch.empty(3, height, width))
    padded = torch.empty(3, resized.shape[1] + 8, resized.shape[2] + 8)
    torch.manual_seed(0)
    reference = np.array([RandomCrop.get_params(padded, (size, size))[:2] for _ in range(DRAWS)]) - 4
    views = [crops.simple_random_crop(height, width, size, RandomKey(1, d)) for d in range(DRAWS)]
    assert {(v.full_height, v.full_width) for v in views} == {tuple(resized.shape[1:])}
    assert {(v.box_top, v.box_left, v.box_height, v.box_width) for v in views} == {(0, 0, height, width)}
    ours = np.array([(v.top, v.left) for v in views])
    for axis in (0, 1):
        assert stats.ks_2samp(ours[:, axis], reference[:, axis]).pvalue > 1e-3
        assert ours[:, axis].min() == -4
        assert ours[:, axis].max() == resized.shape[1 + axis] + 4 - size


def test_src_on_a_landscape_photo_slides_along_the_long_side():
    """500 x 375 at 224: 298 x 224, so 83 positions along the width and 9 along the height."""
    views = [crops.simple_random_crop(375, 500, 224, RandomKey(3, d)) for d in range(4000)]
    assert len({v.left for v in views}) == 83
    assert len({v.top for v in views}) == 9


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([32, 224, 97]), st.sampled_from([1.0, 0.875, 0.95]))
def test_center_crop_is_torchvisions(height, width, size, ratio):
    """Coordinates as an image: where CenterCrop(Resize(...)) takes its corner from."""
    view = crops.center_crop(height, width, size, ratio)
    shortest = int(size / ratio)
    full = (int(shortest * height / width), shortest) if width <= height else (shortest, int(shortest * width / height))
    assert (view.full_height, view.full_width) == full
    if full[0] * full[1] > 4_000_000:
        return
    rows = torch.arange(full[0]).float().view(1, -1, 1).expand(1, *full)
    columns = torch.arange(full[1]).float().view(1, 1, -1).expand(1, *full)
    assert CenterCrop(size)(rows)[0, 0, 0] == view.top
    assert CenterCrop(size)(columns)[0, 0, 0] == view.left


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
def test_every_box_lies_inside_the_image(height, width, draw, seed):
    view = crops.random_resized_crop(height, width, 64, 0.08, 1.0, RandomKey(seed, draw))
    assert 0 <= view.box_top < view.box_top + view.box_height <= height
    assert 0 <= view.box_left < view.box_left + view.box_width <= width
