"""Every operation of the zoo at every strength against timm's on Pillow images: equal."""

import numpy as np
import pytest
from PIL import Image

from ffcv_ops.augment import operations
from ffcv_ops.kernels import resample
from tests.ffcv_ops.images import applied

SCALES = {"plain": operations.PLAIN, "increasing": operations.INCREASING, "paper": operations.PAPER}


@pytest.fixture(scope="module")
def images(photos, odd_images):
    return [photos["china"][:96, :120], photos["cat"][:64, :64], *odd_images.values()]


def ours(image, op, scale, magnitude, negative, interpolation):
    height, width, _ = image.shape
    value = operations.argument(op, scale, magnitude, negative, height, width)
    scratch = np.empty(operations.scratch_size(height, width), np.uint8)
    return applied(operations.run, image, op, value, interpolation, operations.MEAN_COLOR, scratch)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("op", range(operations.IDENTITY), ids=operations.NAMES[:-1])
def test_equal_to_timm(images, timm_operation, op, scale):
    changed = False
    for magnitude in (0.0, 1.0, 4.0, 7.3, 8.9217, 9.0, 10.0):
        for negative in (False, True):
            for image in images:
                result = ours(image, op, SCALES[scale], magnitude, negative, resample.BICUBIC)
                expected = np.asarray(timm_operation(Image.fromarray(image), op, SCALES[scale], magnitude, negative))
                np.testing.assert_array_equal(result, expected, err_msg=f"magnitude {magnitude}")
                changed |= not np.array_equal(expected, image)
    assert changed


@pytest.mark.parametrize("op", [operations.ROTATE, operations.SHEAR_Y, operations.TRANSLATE_X])
def test_bilinear_where_the_stage_is_bilinear(images, timm_operation, op):
    for image in images:
        result = ours(image, op, operations.PLAIN, 9.0, True, resample.BILINEAR)
        kind = Image.Resampling.BILINEAR
        expected = timm_operation(Image.fromarray(image), op, operations.PLAIN, 9.0, True, kind)
        np.testing.assert_array_equal(result, np.asarray(expected))


def test_identity(photos):
    result = ours(photos["cat"], operations.IDENTITY, operations.PLAIN, 9.0, False, resample.BICUBIC)
    np.testing.assert_array_equal(result, photos["cat"])
