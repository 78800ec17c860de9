"""The policies: frequencies and ranges as published, whole compositions equal to Pillow's, given the same draws."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from ffcv_ops import policies, rng
from ffcv_ops.kernels import resample
from ffcv_ops.randaugment import Strength, parse
from ffcv_ops.rng import RandomKey

ALL = policies.GRAY | policies.SOLARIZE | policies.BLUR
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def test_each_operation_has_a_third():
    choices = [policies.three_choice(ALL, RandomKey(1, d)) for d in range(30000)]
    counts = [choices.count(op) for op in (policies.GRAY, policies.SOLARIZE, policies.BLUR)]
    assert sum(counts) == 30000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("subset", [1, 2, 4, 3, 5, 6])
def test_a_subset_is_chosen_from_evenly(subset):
    choices = [policies.three_choice(subset, RandomKey(1, d)) for d in range(6000)]
    enabled = [op for op in (1, 2, 4) if subset & op]
    assert sorted(set(choices)) == enabled
    assert len(enabled) == 1 or stats.chisquare([choices.count(op) for op in enabled]).pvalue > 1e-3


def test_sigma_is_uniform_on_its_range():
    sigmas = np.array([policies.three_sigma(RandomKey(1, d)) for d in range(20000)])
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_jitter_factors_are_uniform_and_independent(which):
    factors = np.array([[policies.jitter_factor(0.3, w, RandomKey(1, d)) for w in range(3)] for d in range(20000)])
    assert stats.kstest(factors[:, which], stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(factors[:, which], factors[:, (which + 1) % 3])[0, 1]) < 0.03


def test_jitter_orders_are_the_six_permutations():
    orders = {tuple(policies.jitter_step(order, position) for position in range(3)) for order in range(6)}
    assert orders == set(itertools.permutations(range(3)))


def pillow_sample(image, *, three_ops, jitter, key):
    """The official transform on a Pillow image, given our draws."""
    if three_ops:
        op = policies.three_choice(three_ops, key)
        if op == policies.GRAY:
            image = image.convert("L").convert("RGB")
        elif op == policies.SOLARIZE:
            image = ImageOps.solarize(image)
        else:
            image = image.filter(ImageFilter.GaussianBlur(policies.three_sigma(key)))
    if jitter:
        order = rng.uniform_int(key, rng.JITTER_ORDER, 6)
        for position in range(3):
            which = policies.jitter_step(order, position)
            image = ENHANCERS[which](image).enhance(policies.jitter_factor(jitter, which, key))
    return np.asarray(image)


PLAIN = Strength()
KEY = RandomKey(5, 0)


def applied(image, augment, *, three_ops=ALL, rand=PLAIN, jitter=0.0, key=KEY, kind=resample.BICUBIC):
    planes = image.transpose(2, 0, 1).copy()
    spare = np.empty(policies.scratch(*image.shape[:2]), np.uint8)
    policies.apply(planes, augment, three_ops, rand, kind, jitter, key, spare)
    return planes.transpose(1, 2, 0)


@pytest.mark.parametrize("three_ops, jitter", [(ALL, 0.3), (ALL, 0.0), (0, 0.3), (policies.BLUR, 0.5)])
def test_three_augment_equals_pillow(photos, three_ops, jitter):
    augment = policies.THREE if three_ops else policies.NONE
    for draw, (name, image) in itertools.product(range(12), photos.items()):
        result = applied(image, augment, three_ops=three_ops, jitter=jitter, key=RandomKey(5, draw))
        expected = pillow_sample(Image.fromarray(image), three_ops=three_ops, jitter=jitter, key=RandomKey(5, draw))
        np.testing.assert_array_equal(result, expected, err_msg=name)
        assert not np.array_equal(expected, image) or name == "page"


ZOO = {
    "official rand": (policies.RAND, parse("rand-m9-mstd0.5-inc1")),
    "heavy rand": (policies.RAND, parse("rand-m10-n5-p0.9-mstd101")),
    "auto-original": (policies.AUTO_ORIGINAL, PLAIN),
    "auto-v0": (policies.AUTO_V0, PLAIN),
    "trivial": (policies.TRIVIAL, PLAIN),
}


@pytest.mark.parametrize("augment, rand", ZOO.values(), ids=ZOO)
def test_the_zoo_equals_pillow(photos, odd_images, pillow_zoo, augment, rand):
    images = [photos["china"][:100, :140], photos["rocket"][200:296, 100:196], *odd_images.values()]
    changed = 0
    for draw in range(150):
        for image in images:
            result = applied(image, augment, rand=rand, key=RandomKey(5, draw))
            expected = np.asarray(pillow_zoo(Image.fromarray(image), augment, rand, RandomKey(5, draw)))
            np.testing.assert_array_equal(result, expected, err_msg=f"draw {draw}")
        changed += not np.array_equal(result, image)
    assert changed > 30


def test_bilinear_reaches_the_operations(photos, pillow_zoo):
    image, differs = photos["china"][:64, :80], False
    rand = parse("rand-m9-p1-inc1")
    for draw in range(40):
        result = applied(image, policies.RAND, rand=rand, key=RandomKey(5, draw), kind=resample.BILINEAR)
        expected = pillow_zoo(
            Image.fromarray(image), policies.RAND, rand, RandomKey(5, draw), Image.Resampling.BILINEAR
        )
        np.testing.assert_array_equal(result, np.asarray(expected))
        differs |= not np.array_equal(result, applied(image, policies.RAND, rand=rand, key=RandomKey(5, draw)))
    assert differs


def test_jitter_follows_any_policy(photos, pillow_zoo):
    image = photos["cat"][:64, :64]
    rand = parse("rand-m9-mstd0.5-inc1")
    for draw in range(20):
        result = applied(image, policies.RAND, rand=rand, jitter=0.3, key=RandomKey(5, draw))
        before = pillow_zoo(Image.fromarray(image), policies.RAND, rand, RandomKey(5, draw))
        np.testing.assert_array_equal(result, pillow_sample(before, three_ops=0, jitter=0.3, key=RandomKey(5, draw)))


def test_every_word_names_a_policy_of_its_own(photos):
    image = photos["cat"][:48, :48]
    shown = {
        tuple(applied(image, number, key=RandomKey(5, d)).tobytes() for d in range(8))
        for number in policies.NAMES.values()
    }
    assert len(shown) == len(policies.NAMES)
