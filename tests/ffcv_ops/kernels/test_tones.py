"""Tone curves and sharpness against Pillow: equal, on photographs and on odd images."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ffcv_ops.kernels import tones
from tests.ffcv_ops.images import applied, assert_equal_to_pillow


@pytest.fixture(scope="module")
def images(photos, odd_images):
    noise = np.random.default_rng(1)
    more = [
        noise.integers(100, 103, (60, 60, 3), dtype=np.uint8),
        (noise.integers(0, 2, (50, 50, 3)) * 200).astype(np.uint8),  # two levels
        noise.integers(0, 256, (2, 50, 3), dtype=np.uint8),
        noise.integers(0, 256, (50, 2, 3), dtype=np.uint8),
    ]
    return [*photos.values(), *odd_images.values(), *more]


def test_invert(images):
    assert_equal_to_pillow(images, tones.invert, ImageOps.invert)


def test_autocontrast(images):
    assert_equal_to_pillow(images, tones.autocontrast, ImageOps.autocontrast)


def test_autocontrast_of_every_pair_of_levels():
    for low in range(0, 255, 17):
        for high in range(low + 1, 256, 13):
            image = np.array([[[low, high, low], [high, low, low], [(low + high) // 2] * 3]], np.uint8)
            expected = np.asarray(ImageOps.autocontrast(Image.fromarray(image)))
            np.testing.assert_array_equal(applied(tones.autocontrast, image), expected)


def test_equalize(images):
    assert_equal_to_pillow(images, tones.equalize, ImageOps.equalize)


@pytest.mark.parametrize("bits", range(1, 8))
def test_posterize(images, bits):
    assert_equal_to_pillow(images, tones.posterize, lambda i: ImageOps.posterize(i, bits), bits)


def test_posterize_beyond_what_pillow_takes(photos):
    """No bits: black, as Pillow made it before version 13 refused. Eight and more: nothing."""
    for bits, expected in ((0, 0), (-3, 0), (8, photos["cat"]), (9, photos["cat"])):
        result = applied(tones.posterize, photos["cat"], bits)
        np.testing.assert_array_equal(result, np.broadcast_to(expected, photos["cat"].shape))


@pytest.mark.parametrize("addend", [1, 55, 99, 110, 128])
def test_solarize_add(images, addend):
    curve = [min(value + addend, 255) if value < 128 else value for value in range(256)]
    assert_equal_to_pillow(images, tones.solarize_add, lambda i: i.point(curve * 3), addend)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.9999, 1.0001, 1.81, 1.99])
def test_sharpness(images, factor):
    def ours(planes, factor):
        tones.sharpness(planes, factor, np.empty(planes[0].size, np.uint8))

    assert_equal_to_pillow(images, ours, lambda i: ImageEnhance.Sharpness(i).enhance(factor), factor)
