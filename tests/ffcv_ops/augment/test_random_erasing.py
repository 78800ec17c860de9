"""Random erasing: boxes and values distributed as timm's, after normalisation, and nothing else touched."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing

from ffcv_ops.augment.policies import random_erasing as erasing
from ffcv_ops.rng import RandomKey
from tests.ffcv_ops.images import applied

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZE = 64


def erased(image, probability=1.0, mode=erasing.PIXEL, draw=0):
    options = erasing.erase.record({"probability": str(probability), "mode": ("const", "rand", "pixel")[mode]}, 0)
    return applied(erasing.erase.kernel, image, options, RandomKey(0, draw), np.empty(0, np.uint8))


def test_boxes_are_distributed_as_timms():
    theirs, ours = [], []
    erase = RandomErasing(probability=1.0, mode="const", device="cpu")
    random.seed(0)
    for draw in range(4000):
        gone = erase(torch.ones(1, SIZE, 48))[0] == 0
        rows, columns = gone.any(1).nonzero(), gone.any(0).nonzero()
        theirs.append([int(rows[0]), int(columns[0]), len(rows), len(columns)])
        ours.append(erasing.box(SIZE, 48, RandomKey(0, draw)))
    ours, theirs = np.array(ours), np.array(theirs)
    for quantity in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3]):
        assert stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3


def test_only_the_box_changes(photos):
    image = photos["cat"][:100, :120]
    for draw in range(50):
        result = erased(image, draw=draw)
        top, left, height, width = erasing.box(100, 120, RandomKey(0, draw))
        outside = np.ones((100, 120), bool)
        outside[top : top + height, left : left + width] = False
        np.testing.assert_array_equal(result[outside], image[outside])
        assert (result[~outside] != image[~outside]).mean() > 0.9


def test_pixel_noise_is_the_standard_normal_after_normalisation():
    """Every level as often as rounding and clipping mean + std z make it, and neighbours independent."""
    image = np.zeros((400, 400, 3), np.uint8)
    values = []
    for draw in range(30):
        top, left, height, width = erasing.box(400, 400, RandomKey(0, draw))
        values.append(erased(image, draw=draw)[top : top + height, left : left + width])
    for c in range(3):
        levels = np.concatenate([v[..., c].ravel() for v in values])
        edges = ((np.arange(255) + 0.5) / 255 - MEAN[c]) / STD[c]
        expected = np.diff(stats.norm.cdf(edges), prepend=0, append=1) * len(levels)
        assert stats.chisquare(np.bincount(levels, minlength=256), expected, sum_check=False).pvalue > 1e-3
    noise = values[0].astype(float)
    for shifted in (noise[1:, :, 0], noise[:-1, :, 1]):
        assert abs(np.corrcoef(noise[:-1, :, 0].ravel(), shifted.ravel())[0, 1]) < 0.03
    assert not np.array_equal(values[0][:20, :20], values[1][:20, :20])


def test_one_colour_for_rand_and_the_mean_for_const():
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    colours = []
    for draw in range(400):
        top, left, height, width = erasing.box(SIZE, SIZE, RandomKey(0, draw))
        inside = np.s_[top : top + height, left : left + width]
        colour = erased(image, mode=erasing.RAND, draw=draw)[inside].reshape(-1, 3)
        assert (colour == colour[0]).all()
        colours.append(colour[0])
        constant = erased(image, mode=erasing.CONST, draw=draw)[inside] / 255
        assert np.abs((constant - MEAN) / STD).max() < 0.01
    colours = np.array(colours)
    for c in range(3):
        assert abs(np.median(colours[:, c] / 255) - MEAN[c]) < 0.05
        assert len(set(colours[:, c])) > 100
    assert abs(np.corrcoef(colours.T)[0, 1]) < 0.2


def test_probability(photos):
    image = photos["cat"][:32, :32]
    changed = sum(not np.array_equal(erased(image, 0.25, draw=draw), image) for draw in range(4000))
    assert abs(changed - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75)
    assert all(np.array_equal(erased(image, 0.0, draw=draw), image) for draw in range(50))


@pytest.mark.parametrize("mode", [erasing.CONST, erasing.RAND, erasing.PIXEL], ids=("const", "rand", "pixel"))
def test_odd_images(odd_images, mode):
    """Too small for a box: left alone, as timm leaves it."""
    for name, image in odd_images.items():
        for draw in range(20):
            result = erased(image, mode=mode, draw=draw)
            assert result.shape == image.shape
            if name == "one pixel":
                np.testing.assert_array_equal(result, image)
