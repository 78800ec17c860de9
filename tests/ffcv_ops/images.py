"""Our operations on images as others have them, uint8 [height, width, 3]."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ffcv_ops import rng
from ffcv_ops.augment import calls, load, operations
from ffcv_ops.augment.policies import color_jitter, three_augment
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


def three_by_pillow(image, ops, key):
    """The official 3-Augment on a Pillow image, given our draws."""
    op = three_augment.choice_of(ops, key)
    if op == three_augment.GRAY:
        return image.convert("L").convert("RGB")
    if op == three_augment.SOLARIZE:
        return ImageOps.solarize(image)
    return image.filter(ImageFilter.GaussianBlur(three_augment.sigma_of(key)))


def jitter_by_pillow(image, strength, key):
    """The official color jitter on a Pillow image, given our draws."""
    order = rng.uniform_int(key, rng.JITTER_ORDER, 6)
    for position in range(3):
        which = color_jitter.adjustment(order, position)
        enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
        image = enhancer(image).enhance(color_jitter.factor_of(strength, which, key))
    return image
