"""The vocabulary of RandAugment, AutoAugment and TrivialAugment: numbered operations, each with one argument.

`argument` is timm's scale from a magnitude (0..10, larger only where a policy's limit allows it) to the argument, and
`run` carries it out on planes, uint8 [3, height, width]. What an argument is:

rotate: degrees; shear: slope; translate: pixels; posterize: bits kept; solarize: threshold; solarize_add: addend;
color, contrast, brightness, sharpness: factor; the others: nothing.
"""

import math

import numpy as np

from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import geometry, pixels, tones

# timm's list, in its order, and the operation that only TrivialAugment has.
NAMES = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "identity",
)  # fmt: skip
(
    AUTOCONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, SOLARIZE_ADD, COLOR, CONTRAST,
    BRIGHTNESS, SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, IDENTITY,
) = range(len(NAMES))  # fmt: skip

# How a magnitude acts on posterize, solarize and the four enhancements: timm's plain operations (strongest at 0 or
# changing sides at 5), its "increasing" ones (RandAugment's inc1: nothing at 0), and plain but for the AutoAugment
# paper's posterize, which keeps at least four bits.
PLAIN, INCREASING, PAPER = 0, 1, 2

MEAN_COLOR = (124, 116, 104)  # ImageNet's mean, as timm rounds it: what rotations and the like uncover
BLACK = (0, 0, 0)


@kernel
def argument(op, scale, magnitude, negative, height, width):
    """The argument of `op` at this magnitude. negative: the sign, where the operation has two directions."""
    share = magnitude / 10.0
    sign = -1.0 if negative else 1.0
    if op == ROTATE:
        return sign * (share * 30.0)
    if op in (SHEAR_X, SHEAR_Y):
        return sign * (share * 0.3)
    if op == TRANSLATE_X:
        return sign * (share * 0.45) * width
    if op == TRANSLATE_Y:
        return sign * (share * 0.45) * height
    if op == POSTERIZE:
        bits = np.floor(share * 4.0)
        return 4.0 - bits if scale == INCREASING else bits + 4.0 if scale == PAPER else bits
    if op == SOLARIZE:
        threshold = min(np.floor(share * 256.0), 256.0)
        return 256.0 - threshold if scale == INCREASING else threshold
    if op == SOLARIZE_ADD:
        return min(np.floor(share * 110.0), 128.0)
    if op in (COLOR, CONTRAST, BRIGHTNESS, SHARPNESS):
        return max(0.1, 1.0 + sign * (share * 0.9)) if scale == INCREASING else share * 1.8 + 0.1
    return 0.0


@kernel
def run(planes, op, value, interpolation, fill, scratch):
    """Applies `op` with argument `value` in place. interpolation, fill (red, green, blue): geometry's.

    scratch: uint8, at least `scratch_size(height, width)` values.
    """
    if op == AUTOCONTRAST:
        tones.autocontrast(planes)
    elif op == EQUALIZE:
        tones.equalize(planes)
    elif op == INVERT:
        tones.invert(planes)
    elif op == ROTATE:
        geometry.rotate(planes, value, interpolation, fill, scratch)
    elif op == POSTERIZE:
        tones.posterize(planes, int(value))
    elif op == SOLARIZE:
        pixels.solarize(planes, math.ceil(value))
    elif op == SOLARIZE_ADD:
        tones.solarize_add(planes, int(value))
    elif op == COLOR:
        pixels.saturation(planes, value)
    elif op == CONTRAST:
        pixels.contrast(planes, value)
    elif op == BRIGHTNESS:
        pixels.brightness(planes, value)
    elif op == SHARPNESS:
        tones.sharpness(planes, value, scratch)
    elif op != IDENTITY:
        shear, columns = op in (SHEAR_X, SHEAR_Y), op in (SHEAR_Y, TRANSLATE_Y)
        slope, shift = (value, 0.0) if shear else (0.0, value)
        geometry.slide(planes, slope, shift, columns, interpolation, fill, scratch)


scratch_size = geometry.rotate_scratch  # no other operation needs more


def words(row) -> list[str]:
    """What a row of (operation, argument) does, for people."""
    bare = (AUTOCONTRAST, EQUALIZE, INVERT)
    return [NAMES[op] + ("" if op in bare else f" {value:.3g}") for op, value in row if op != IDENTITY]
