"""TrivialAugment, the wide space (Müller and Hutter 2021), as torchvision's TrivialAugmentWide with its defaults.

One of fourteen operations for each sample, at one of 31 strengths, all equally likely; black where a geometric
operation looks outside, nearest neighbours. The enhancements are factors 1 -+ strength.
"""

import numpy as np

from ffcv_ops import rng
from ffcv_ops.augment import operations
from ffcv_ops.augment.declare import augmentation
from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import geometry

BINS = 31

# operation: strength of the first and of the last bin, whether the sign is drawn
_SPACE = {
    operations.IDENTITY: (0.0, 0.0, False),
    operations.SHEAR_X: (0.0, 0.99, True),
    operations.SHEAR_Y: (0.0, 0.99, True),
    operations.TRANSLATE_X: (0.0, 32.0, True),
    operations.TRANSLATE_Y: (0.0, 32.0, True),
    operations.ROTATE: (0.0, 135.0, True),
    operations.BRIGHTNESS: (0.0, 0.99, True),
    operations.COLOR: (0.0, 0.99, True),
    operations.CONTRAST: (0.0, 0.99, True),
    operations.SHARPNESS: (0.0, 0.99, True),
    operations.POSTERIZE: (8.0, 2.0, False),
    operations.SOLARIZE: (255.0, 0.0, False),
    operations.AUTOCONTRAST: (0.0, 0.0, False),
    operations.EQUALIZE: (0.0, 0.0, False),
}
OPS = np.array(list(_SPACE))
SIGNED = np.array([signed for _, _, signed in _SPACE.values()])


def _bins(first, last):
    """31 evenly spaced strengths: from the nearer end by a float32 step, as torch.linspace has them.

    Its last bit matters once: the translation of bin 15, 15.999999 pixels, is truncated to 15.
    """
    first, last = np.float32(first), np.float32(last)
    step = np.float64((last - first) / np.float32(BINS - 1))
    up, down = first + step * np.arange(BINS), last - step * np.arange(BINS)[::-1]
    return np.where(np.arange(BINS) < BINS // 2, up, down).astype(np.float32)


STRENGTHS = np.array([_bins(first, last) for first, last, _ in _SPACE.values()], np.float64)  # [operation, bin]


@kernel
def choose(key):
    """The operation of this sample and its argument."""
    which = rng.uniform_int(key, rng.CHOICE, len(OPS))
    strength = STRENGTHS[which, rng.uniform_int(key, rng.LAYER + 2, BINS)]
    if SIGNED[which] and rng.uniform(key, rng.LAYER + 4) < 0.5:
        strength = -strength
    op = OPS[which]
    if op == operations.POSTERIZE:
        return op, np.rint(strength)
    if op in (operations.TRANSLATE_X, operations.TRANSLATE_Y):
        return op, -np.trunc(strength)  # torchvision's direction: positive moves the picture right and down
    if op in (operations.BRIGHTNESS, operations.COLOR, operations.CONTRAST, operations.SHARPNESS):
        return op, 1.0 + strength
    return op, strength


def by_torchvision(image, options, key):
    from ffcv_ops.augment import pillow

    return pillow.by_torchvision(image, [choose(key)])


@augmentation(words=lambda options, height, width, key: operations.words([choose(key)]), reference=by_torchvision)
def trivial(planes, options, key, scratch):
    """TrivialAugment: one operation at a strength from its whole range."""
    op, value = choose(key)
    operations.run(planes, op, value, geometry.NEAREST, operations.BLACK, scratch)
