"""Every pixel operation against Pillow: equal, on photographs and on odd images."""

import numpy as np
import pytest
from PIL import ImageEnhance, ImageFilter, ImageOps

from ffcv_ops.kernels import pixels
from tests.ffcv_ops.images import applied, assert_equal_to_pillow


@pytest.fixture(scope="module")
def images(photos, odd_images):
    return [*photos.values(), *odd_images.values()]


def test_grayscale(images):
    assert_equal_to_pillow(images, pixels.grayscale, lambda i: i.convert("L").convert("RGB"))


def test_grayscale_of_pure_colours():
    """76, 150 and 29: the luma of pure red, green and blue (facts of the official transform)."""
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert applied(pixels.grayscale, image)[0, :, 0].tolist() == [76, 150, 29]


@pytest.mark.parametrize("threshold", [128, 0, 1, 255])
def test_solarize(images, threshold):
    assert_equal_to_pillow(images, pixels.solarize, lambda i: ImageOps.solarize(i, threshold), threshold)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.7, 0.9999, 1.2999, 1.3, 1.9])
@pytest.mark.parametrize(
    "ours, pillow",
    [
        (pixels.brightness, ImageEnhance.Brightness),
        (pixels.contrast, ImageEnhance.Contrast),
        (pixels.saturation, ImageEnhance.Color),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_adjustments(images, ours, pillow, factor):
    assert_equal_to_pillow(images, ours, lambda i: pillow(i).enhance(factor), factor)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.77, 1.0, 1.41, 1.42, 1.8, 2.0, 3.7, 12.0])
def test_gaussian_blur(images, sigma):
    def ours(planes):
        pixels.gaussian_blur(planes, sigma, np.empty(2 * planes[0].size, np.uint8))

    assert_equal_to_pillow(images, ours, lambda i: i.filter(ImageFilter.GaussianBlur(sigma)))


def test_gaussian_blur_of_an_impulse_has_that_standard_deviation():
    """Independent of Pillow: the second moment of the blurred impulse is sigma squared (rounding aside)."""
    for sigma in (1.0, 1.5, 2.0):
        image = np.zeros((41, 41, 3), np.uint8)
        image[20, 20] = 255
        result = applied(pixels.gaussian_blur, image, sigma, np.empty(2 * 41 * 41, np.uint8))[..., 0].astype(float)
        profile = result.sum(0) / result.sum()
        assert abs(np.sqrt((profile * (np.arange(41) - 20) ** 2).sum()) - sigma) < 0.15


def test_interleave_is_the_transpose(photos):
    image = photos["cat"]
    out = np.empty_like(image)
    pixels.interleave(image.transpose(2, 0, 1).copy(), out)
    np.testing.assert_array_equal(out, image)
