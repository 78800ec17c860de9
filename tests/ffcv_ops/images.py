"""Our operations on images as others have them, uint8 [height, width, 3]."""

import numpy as np
from PIL import Image

from ffcv_ops.augment import calls, load, operations
from ffcv_ops.kernels import resample


def applied(function, image, *arguments):
    """What function(planes, *arguments) makes of an image."""
    planes = image.transpose(2, 0, 1).copy()
    function(planes, *arguments)
    return planes.transpose(1, 2, 0)


def augmented(image, text, key, kind=resample.BICUBIC):
    """What a chain of augmentations makes of an image."""
    chain = load.compiled(load.from_text(text), kind)
    scratch = np.empty(operations.scratch_size(*image.shape[:2]), np.uint8)
    return applied(lambda planes: calls.apply(chain, planes, key, scratch), image)


def assert_equal_to_pillow(images, ours, pillow, *arguments):
    """ours: as in `applied`; pillow: Pillow image -> Pillow image."""
    changed = False
    for image in images:
        expected = np.asarray(pillow(Image.fromarray(image)))
        np.testing.assert_array_equal(applied(ours, image, *arguments), expected)
        changed |= not np.array_equal(expected, image)
    assert changed, "the reference does nothing, so this test proves nothing"
