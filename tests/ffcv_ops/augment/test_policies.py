"""The policies: frequencies and ranges as published, whole compositions equal to Pillow's, given the same draws."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy import stats

from ffcv_ops import rng
from ffcv_ops.augment import chain, load
from ffcv_ops.augment.policies import color_jitter, three_augment
from ffcv_ops.kernels import resample
from ffcv_ops.rng import RandomKey
from tests.ffcv_ops.images import augmented, jitter_by_pillow, three_by_pillow

ALL = three_augment.GRAY | three_augment.SOLARIZE | three_augment.BLUR


def test_each_operation_has_a_third():
    choices = [three_augment.choice_of(ALL, RandomKey(1, d)) for d in range(30000)]
    counts = [choices.count(op) for op in (three_augment.GRAY, three_augment.SOLARIZE, three_augment.BLUR)]
    assert sum(counts) == 30000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("subset", [1, 2, 4, 3, 5, 6])
def test_a_subset_is_chosen_from_evenly(subset):
    choices = [three_augment.choice_of(subset, RandomKey(1, d)) for d in range(6000)]
    enabled = [op for op in (1, 2, 4) if subset & op]
    assert sorted(set(choices)) == enabled
    assert len(enabled) == 1 or stats.chisquare([choices.count(op) for op in enabled]).pvalue > 1e-3


def test_sigma_is_uniform_on_its_range():
    sigmas = np.array([three_augment.sigma_of(RandomKey(1, d)) for d in range(20000)])
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_jitter_factors_are_uniform_and_independent(which):
    factors = np.array([[color_jitter.factor_of(0.3, w, RandomKey(1, d)) for w in range(3)] for d in range(20000)])
    assert stats.kstest(factors[:, which], stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(factors[:, which], factors[:, (which + 1) % 3])[0, 1]) < 0.03


def test_jitter_orders_are_the_six_permutations():
    orders = {tuple(color_jitter.adjustment(order, position) for position in range(3)) for order in range(6)}
    assert orders == set(itertools.permutations(range(3)))


def pillow_sample(image, *, three_ops, jitter, key):
    """The official transform on a Pillow image, given our draws."""
    image = three_by_pillow(image, three_ops, key) if three_ops else image
    return np.asarray(jitter_by_pillow(image, jitter, key) if jitter else image)


@pytest.mark.parametrize("text, three_ops, jitter", [
    ("three | jitter(0.3)", ALL, 0.3), ("three", ALL, 0.0), ("jitter(0.3)", 0, 0.3),
    ("three(blur) | jitter(0.5)", three_augment.BLUR, 0.5),
])  # fmt: skip
def test_three_augment_equals_pillow(photos, text, three_ops, jitter):
    for draw, (name, image) in itertools.product(range(12), photos.items()):
        result = augmented(image, text, key=RandomKey(5, draw))
        expected = pillow_sample(Image.fromarray(image), three_ops=three_ops, jitter=jitter, key=RandomKey(5, draw))
        np.testing.assert_array_equal(result, expected, err_msg=name)
        assert not np.array_equal(expected, image) or name == "page"


ZOO = ("rand(rand-m9-mstd0.5-inc1)", "rand(rand-m10-n5-p0.9-mstd101)", "auto-original", "auto-v0", "trivial")


@pytest.mark.parametrize("text", ZOO)
def test_the_zoo_equals_pillow(photos, odd_images, pillow_zoo, text):
    images = [photos["china"][:100, :140], photos["rocket"][200:296, 100:196], *odd_images.values()]
    changed = 0
    for draw in range(150):
        for image in images:
            result = augmented(image, text, key=RandomKey(5, draw))
            expected = np.asarray(pillow_zoo(Image.fromarray(image), text, RandomKey(5, draw)))
            np.testing.assert_array_equal(result, expected, err_msg=f"draw {draw}")
        changed += not np.array_equal(result, image)
    assert changed > 30


@pytest.mark.parametrize("kind, theirs", [
    (resample.BICUBIC, Image.Resampling.BICUBIC), (resample.BILINEAR, Image.Resampling.BILINEAR),
])  # fmt: skip
def test_the_declared_references_are_what_is_declared(photos, kind, theirs, pillow_zoo):
    """The preview's other side, of every augmentation that has one, is ours to the byte; and this test's own, too."""
    image = Image.fromarray(photos["rocket"][200:296, 100:196])
    compared = [name for name, one in chain.declared().items() if one.reference]
    zoo = {"rand", "auto-original", "auto-v0", "trivial"}
    assert set(compared) == {"three", "jitter", "gray", "solarize", "blur", *zoo}
    for name, draw in itertools.product(compared, range(20)):
        key, loaded = RandomKey(5, draw), load.from_text(name)
        expected = np.asarray(load.reference(loaded, kind, image, key))
        np.testing.assert_array_equal(augmented(np.asarray(image), name, key=key, kind=kind), expected, err_msg=name)
        if name in zoo:
            np.testing.assert_array_equal(expected, np.asarray(pillow_zoo(image, name, key, theirs)))


@pytest.mark.parametrize("probability", [0, 0.5, 1])
@pytest.mark.parametrize("name, by_pillow", [
    ("gray", lambda image, key: image.convert("L").convert("RGB")),
    ("solarize", lambda image, key: ImageOps.solarize(image, 128)),
    ("blur", lambda image, key: image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * rng.uniform(key, rng.BLUR + 1)))),
])  # fmt: skip
def test_a_single_operation_is_pillows_with_its_probability(photos, name, by_pillow, probability):
    image, changed = photos["cat"][:40, :56], 0
    for draw in range(100):
        result, key = augmented(image, f"{name}({probability})", key=RandomKey(5, draw)), RandomKey(5, draw)
        if not np.array_equal(result, image):
            np.testing.assert_array_equal(result, np.asarray(by_pillow(Image.fromarray(image), key)))
            changed += 1
    assert probability * 100 - 20 <= changed <= probability * 130


def test_a_wide_blur_is_pillows(photos):
    image = photos["cat"][:40, :56]
    for draw in range(20):
        key = RandomKey(5, draw)
        expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(16 * rng.uniform(key, rng.BLUR + 1)))
        np.testing.assert_array_equal(augmented(image, "blur(1, 0, 16)", key=key), np.asarray(expected))


def test_bilinear_reaches_the_operations(photos, pillow_zoo):
    image, differs, text = photos["china"][:64, :80], False, "rand(rand-m9-p1-inc1)"
    for draw in range(40):
        key = RandomKey(5, draw)
        result = augmented(image, text, key=key, kind=resample.BILINEAR)
        expected = pillow_zoo(Image.fromarray(image), text, key, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(result, np.asarray(expected))
        differs |= not np.array_equal(result, augmented(image, text, key=key))
    assert differs


def test_jitter_follows_any_policy(photos, pillow_zoo):
    image = photos["cat"][:64, :64]
    for draw in range(20):
        key = RandomKey(5, draw)
        result = augmented(image, "rand | jitter(0.3)", key=key)
        before = pillow_zoo(Image.fromarray(image), "rand", key)
        np.testing.assert_array_equal(result, pillow_sample(before, three_ops=0, jitter=0.3, key=key))


def test_every_word_names_an_augmentation_of_its_own(photos):
    image = photos["cat"][:48, :48]
    words = ["none", *chain.declared()]
    shown = {tuple(augmented(image, word, key=RandomKey(5, d)).tobytes() for d in range(32)) for word in words}
    assert len(shown) == len(words)
