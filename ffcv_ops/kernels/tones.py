"""Tone curves and sharpness of three planes, uint8 [3, height, width], in place: Pillow's ImageOps, to the bit.

What RandAugment, AutoAugment and TrivialAugment need beside `pixels.py`. Pure: no random numbers, no FFCV.
"""

import numpy as np

from ffcv_ops.compiled import kernel
from ffcv_ops.kernels.pixels import blend

_THIRTEENTH, _HALF = np.float32(1.0 / 13.0), np.float32(0.5)


@kernel
def invert(planes):
    """255 - value (ImageOps.invert)."""
    flat = planes.reshape(-1)
    for x in range(flat.size):
        flat[x] = np.uint8(255) - flat[x]


@kernel
def posterize(planes, bits):
    """Keeps the upper `bits` bits (ImageOps.posterize); none or fewer: black, where Pillow 13 refuses."""
    mask = np.uint8(0xFF00 >> min(max(bits, 0), 8) & 0xFF)
    flat = planes.reshape(-1)
    for x in range(flat.size):
        flat[x] &= mask


@kernel
def solarize_add(planes, addend):
    """Values below 128 grow by `addend` (0..128), at most to 255 (AutoAugment's SolarizeAdd)."""
    flat = planes.reshape(-1)
    added = np.uint8(addend)
    for x in range(flat.size):
        flat[x] = flat[x] + (added if flat[x] < 128 else np.uint8(0))


@kernel
def _look_up(plane, table):
    flat = plane.reshape(-1)
    for x in range(flat.size):
        flat[x] = table[flat[x]]


@kernel
def autocontrast(planes):
    """Each plane's range is stretched to 0..255 (ImageOps.autocontrast); a plane of one value stays."""
    table = np.empty(256, np.uint8)
    for c in range(3):
        flat = planes[c].reshape(-1)
        low, high = flat.min(), flat.max()
        if low == high:
            continue
        scale = 255.0 / (high - low)
        offset = -np.float64(low) * scale
        for value in range(256):
            table[value] = min(max(int(value * scale + offset), 0), 255)
        _look_up(planes[c], table)


@kernel
def _histogram(plane, counts):
    """counts: int64 [256]. Two tables, so that a run of equal values does not wait for its own additions."""
    flat = plane.reshape(-1)
    counts[:] = 0
    odd = np.zeros(256, np.int64)
    for x in range(flat.size // 2):
        counts[flat[2 * x]] += 1
        odd[flat[2 * x + 1]] += 1
    if flat.size % 2:
        counts[flat[-1]] += 1
    counts += odd


@kernel
def equalize(planes):
    """Each plane's histogram is made as flat as a tone curve can (ImageOps.equalize)."""
    table, counts = np.empty(256, np.uint8), np.empty(256, np.int64)
    for c in range(3):
        _histogram(planes[c], counts)
        last = 255
        while counts[last] == 0:
            last -= 1
        step = (planes[c].size - counts[last]) // 255
        if step == 0:
            continue
        below = step // 2
        for value in range(256):
            table[value] = min(below // step, 255)
            below += counts[value]
        _look_up(planes[c], table)


@kernel
def _sharpen_line(above, here, below, factor, sums, out):
    """One line but for its ends. sums: scratch, int32, two longer than the line."""
    n = len(here)
    middle, right = sums[1:], sums[2:]
    for x in range(n):
        middle[x] = np.int32(np.int32(above[x]) + np.int32(here[x])) + np.int32(below[x])
    for x in range(n):  # the ends too, so that the length is a round one
        value = np.int32(here[x])
        nine = np.int32(np.int32(sums[x] + middle[x]) + right[x])
        total = np.int32(nine + np.int32(np.int32(4) * value))
        smooth = np.int32(np.float32(total) * _THIRTEENTH + _HALF)
        out[x] = blend(smooth, value, factor)
    out[0], out[n - 1] = here[0], here[n - 1]


@kernel
def sharpness(planes, factor, scratch):
    """Blend with the 3 x 3 smoothed image (ImageEnhance.Sharpness): factor 0 is smooth, 1 the image, above 1 sharper.

    Smoothed is (the nine values + four times the middle one) / 13, rounded; the outermost pixels stay as they are.
    scratch: uint8, the size of a plane.
    """
    _, height, width = planes.shape
    before = scratch[: height * width]
    lines = before.reshape(height, width)
    sums = np.zeros(width + 2, np.int32)
    for c in range(3):
        flat = planes[c].reshape(-1)
        for x in range(flat.size):
            before[x] = flat[x]
        for y in range(1, height - 1):
            _sharpen_line(lines[y - 1], lines[y], lines[y + 1], np.float32(factor), sums, planes[c, y])
