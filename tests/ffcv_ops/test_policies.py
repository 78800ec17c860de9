"""3-Augment and ColorJitter: frequencies and ranges as published, pixels as Pillow's, both orders of composition."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from ffcv_ops import policies

ALL = policies.GRAY | policies.SOLARIZE | policies.BLUR
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def test_each_operation_has_a_third():
    choices = [policies.three_choice(ALL, 1, d) for d in range(30000)]
    counts = [choices.count(op) for op in (policies.GRAY, policies.SOLARIZE, policies.BLUR)]
    assert sum(counts) == 30000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("subset", [1, 2, 4, 3, 5, 6])
def test_a_subset_is_chosen_from_evenly(subset):
    choices = [policies.three_choice(subset, 1, d) for d in range(6000)]
    enabled = [op for op in (1, 2, 4) if subset & op]
    assert sorted(set(choices)) == enabled
    assert len(enabled) == 1 or stats.chisquare([choices.count(op) for op in enabled]).pvalue > 1e-3


def test_sigma_is_uniform_on_its_range():
    sigmas = np.array([policies.three_sigma(1, d) for d in range(20000)])
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_jitter_factors_are_uniform_and_independent(which):
    factors = np.array([[policies.jitter_factor(0.3, w, 1, d) for w in range(3)] for d in range(20000)])
    assert stats.kstest(factors[:, which], stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(factors[:, which], factors[:, (which + 1) % 3])[0, 1]) < 0.03


def test_jitter_orders_are_the_six_permutations():
    orders = {tuple(policies.jitter_step(order, position) for position in range(3)) for order in range(6)}
    assert orders == set(itertools.permutations(range(3)))


def pillow_sample(image, *, three_ops, jitter, seed, draw):
    """The official transform on a Pillow image, given our draws."""
    if three_ops:
        op = policies.three_choice(three_ops, seed, draw)
        if op == policies.GRAY:
            image = image.convert("L").convert("RGB")
        elif op == policies.SOLARIZE:
            image = ImageOps.solarize(image)
        else:
            image = image.filter(ImageFilter.GaussianBlur(policies.three_sigma(seed, draw)))
    if jitter:
        order = policies.draws.uniform_int(seed, draw, policies.draws.JITTER_ORDER, 6)
        for position in range(3):
            which = policies.jitter_step(order, position)
            image = ENHANCERS[which](image).enhance(policies.jitter_factor(jitter, which, seed, draw))
    return np.asarray(image)


@pytest.mark.parametrize("three_ops, jitter", [(ALL, 0.3), (ALL, 0.0), (0, 0.3), (policies.BLUR, 0.5)])
def test_the_whole_policy_equals_pillow(photos, three_ops, jitter):
    augment = policies.THREE if three_ops else policies.NONE
    for draw, (name, image) in itertools.product(range(12), photos.items()):
        planes = image.transpose(2, 0, 1).copy()
        policies.apply(planes, augment, three_ops, jitter, 5, draw, np.empty(2 * image.shape[0] * image.shape[1], "u1"))
        expected = pillow_sample(Image.fromarray(image), three_ops=three_ops, jitter=jitter, seed=5, draw=draw)
        np.testing.assert_array_equal(planes.transpose(1, 2, 0), expected, err_msg=name)
        assert not np.array_equal(expected, image) or name == "page"
