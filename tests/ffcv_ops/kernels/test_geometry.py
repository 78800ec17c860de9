"""Shears, translations and rotations against Pillow's transform: equal, on photographs and on odd images."""

import math

import numpy as np
import pytest
from PIL import Image

from ffcv_ops.kernels import geometry, resample
from tests.ffcv_ops import images as images_of

FILL = (124, 116, 104)
KINDS = {
    "bicubic": (resample.BICUBIC, Image.Resampling.BICUBIC),
    "bilinear": (resample.BILINEAR, Image.Resampling.BILINEAR),
    "nearest": (geometry.NEAREST, Image.Resampling.NEAREST),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def images(photos, odd_images):
    noise = np.random.default_rng(1)
    more = [np.full((21, 34, 3), 201, np.uint8), (noise.integers(0, 2, (50, 64, 3)) * 255).astype(np.uint8)]
    return [*(photo[:160, :224] for photo in photos.values()), *odd_images.values(), *more]


def applied(function, image, *arguments):
    scratch = np.empty(geometry.rotate_scratch(*image.shape[:2]), np.uint8)
    return images_of.applied(function, image, *arguments, scratch)


def transformed(image, matrix, pillow_kind):
    image = Image.fromarray(image)
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, matrix, pillow_kind, fillcolor=FILL))


def assert_slides(images, slope, shift, columns, matrix, kind):
    ours_kind, pillow_kind = KINDS[kind]
    changed = False
    for image in images:
        result = applied(geometry.slide, image, slope, shift, columns, ours_kind, FILL)
        expected = transformed(image, matrix, pillow_kind)
        np.testing.assert_array_equal(result, expected)
        changed |= not np.array_equal(expected, image)
    assert changed or abs(slope) + abs(shift) < 0.01


@kinds
@pytest.mark.parametrize("slope", [0.0, 0.3, -0.3, 0.27, 1e-3, -0.1234, 0.99, -7.7])
def test_shears(images, slope, kind):
    assert_slides(images, slope, 0.0, False, (1, slope, 0, 0, 1, 0), kind)
    assert_slides(images, slope, 0.0, True, (1, 0, 0, slope, 1, 0), kind)


@kinds
@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0, 32.0, -3.0, 90.72, -90.72, 0.5, -0.5, 0.3, -1e-9, 81 + 2**-46, 1e4])
def test_translations(images, shift, kind):
    if kind == "nearest":
        shift = float(round(shift))
    assert_slides(images, 0.0, shift, False, (1, 0, shift, 0, 1, 0), kind)
    assert_slides(images, 0.0, shift, True, (1, 0, 0, 0, 1, shift), kind)


ANGLES = [0.0, 27.0, -27.0, 30.0, 45.0, -45.0, 90.0, -90.0, 135.0, 180.0, 4.5, -0.01, *np.linspace(-30, 30, 9)]


@kinds
@pytest.mark.parametrize("degrees", ANGLES)
def test_rotation(images, degrees, kind):
    ours_kind, pillow_kind = KINDS[kind]
    for image in images:
        result = applied(geometry.rotate, image, degrees, ours_kind, FILL)
        expected = np.asarray(Image.fromarray(image).rotate(degrees, pillow_kind, fillcolor=FILL))
        np.testing.assert_array_equal(result, expected)
    assert abs(degrees) < 0.1 or not np.array_equal(expected, image)


def test_rotation_matrix_is_rounded_like_pythons():
    """To 15 decimals, on the exact decimal value: float64 products alone get one angle in twenty wrong."""
    for degrees in np.random.default_rng(0).uniform(-180, 180, 3000):
        angle = -math.radians(degrees % 360.0)
        matrix = geometry.rotation(11, 20, degrees)
        assert matrix[0] == matrix[4] == round(math.cos(angle), 15)
        assert matrix[1] == -matrix[3] == round(math.sin(angle), 15)


def test_a_quarter_turn_is_the_transpose(photos):
    """Independent of Pillow: the direction, and nothing is lost."""
    square = photos["cat"][:90, :90]
    for kind, _ in KINDS.values():
        np.testing.assert_array_equal(applied(geometry.rotate, square, 90.0, kind, FILL), np.rot90(square))


def test_fill_colour_is_per_channel():
    image = np.full((8, 10, 3), 200, np.uint8)
    result = applied(geometry.slide, image, 0.0, 4.0, False, resample.BICUBIC, FILL)
    assert (result[:, :6] == 200).all()
    assert (result[:, 6:] == FILL).all()
