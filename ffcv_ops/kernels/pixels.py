"""Pixel operations on three planes, uint8 [3, height, width], in place. Pure: no random numbers, no FFCV.

Each one is Pillow's arithmetic to the bit, because the paper's augmentations are Pillow's (official code, augment.py):
8-bit results after every step, `Image.blend` truncates, luma is ITU-R 601-2 in 16-bit fixed point, GaussianBlur is
three extended box blurs each way. Planes rather than interleaved pixels, so that every loop here vectorises.
"""

import math
from typing import NamedTuple

import numpy as np

from ffcv_ops.compiled import kernel, module

lanes = module("ffcv_ops.kernels.lanes")  # imports numba


@kernel
def _luma(red, green, blue, x):
    """Pillow's convert("L") of pixel x, as int32 in 0..255."""
    weighted = np.int32(19595) * red[x] + np.int32(38470) * green[x] + np.int32(7471) * blue[x]
    return np.int32(np.int32(weighted + np.int32(0x8000)) >> np.int32(16))


@kernel
def grayscale(planes):
    """All three planes become the luma (torchvision Grayscale(3), Pillow convert("L"))."""
    _, height, width = planes.shape
    for y in range(height):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(width):
            gray = np.uint8(_luma(red, green, blue, x))
            red[x] = gray
            green[x] = gray
            blue[x] = gray


@kernel
def solarize(planes, threshold):
    """Values at or above `threshold` are inverted (ImageOps.solarize; the paper's threshold is 128)."""
    flat = planes.reshape(-1)
    for x in range(flat.size):
        value = flat[x]
        flat[x] = np.uint8(255) - value if value >= threshold else value


@kernel
def blend(base, value, factor):
    """Image.blend of two 8-bit values: base + factor * (value - base) in float32, truncated, clipped."""
    mixed = np.int32(np.float32(base) + factor * np.float32(np.int32(value - base)))
    return np.uint8(min(max(mixed, np.int32(0)), np.int32(255)))


@kernel
def _blend_with_constant(planes, base, factor):
    flat = planes.reshape(-1)
    for x in range(flat.size):
        flat[x] = blend(base, np.int32(flat[x]), factor)


@kernel
def brightness(planes, factor):
    """Blend with black: factor 0 is black, 1 the image, above 1 brighter (ImageEnhance.Brightness)."""
    _blend_with_constant(planes, np.int32(0), np.float32(factor))


@kernel
def contrast(planes, factor):
    """Blend with the image's mean luma, rounded to an integer (ImageEnhance.Contrast)."""
    _, height, width = planes.shape
    total = 0
    for y in range(height):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        line = np.int32(0)
        for x in range(width):
            line = np.int32(line + _luma(red, green, blue, x))
        total += line
    mean = int(total / (height * width) + 0.5)
    _blend_with_constant(planes, np.int32(mean), np.float32(factor))


@kernel
def saturation(planes, factor):
    """Blend of each pixel with its own luma (ImageEnhance.Color)."""
    _, height, width = planes.shape
    factor = np.float32(factor)
    for y in range(height):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(width):
            gray = _luma(red, green, blue, x)
            red[x] = blend(gray, np.int32(red[x]), factor)
            green[x] = blend(gray, np.int32(green[x]), factor)
            blue[x] = blend(gray, np.int32(blue[x]), factor)


@kernel
def box_radius(sigma):
    """The (fractional) radius of the box whose three-fold blur has standard deviation `sigma` (Pillow's formula)."""
    sigma2 = np.float32(sigma) * np.float32(sigma) / np.float32(3.0)
    length = np.float32(math.sqrt(12.0 * sigma2 + 1.0))
    whole = np.float32(math.floor((length - np.float32(1.0)) / np.float32(2.0)))
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * sigma2)
    edge = np.float32(edge) / np.float32(6 * (sigma2 - (whole + 1) * (whole + 1)))
    return np.float32(whole + edge)


class Box(NamedTuple):
    """A box blur: weight `inner` on 2 * reach + 1 lines, `outer` on the line beyond each end; 24 fractional bits."""

    reach: int
    inner: np.uint32
    outer: np.uint32


@kernel
def _box_sum(middle, near, far, inner, outer):
    """One value of a box blur: `middle` and `near` have weight `inner`, `far` has `outer` (24 fractional bits)."""
    weighted = np.uint32(np.uint32((middle + near) * inner) + np.uint32(far * outer))
    return np.uint8(np.uint32(weighted + np.uint32(1 << 23)) >> np.uint32(24))


@kernel
def _box_line(middle, step, above, below, box, total, out):
    """out = box blur across lines, at the line with address `middle`; line k is k * step bytes behind it.

    Lines before -above or behind `below` count as the last one. total: uint32 [n], scratch. out: uint8 [n].
    """
    reach, inner, outer = box
    n = len(out)
    center = lanes.values(middle, n)
    before = lanes.values(middle - min(reach + 1, above) * step, n)
    after = lanes.values(middle + min(reach + 1, below) * step, n)
    if reach == 0:
        for x in range(n):
            ends = np.uint32(np.uint32(before[x]) + np.uint32(after[x]))
            out[x] = _box_sum(np.uint32(center[x]), np.uint32(0), ends, inner, outer)
        return
    one, other = lanes.values(middle - min(1, above) * step, n), lanes.values(middle + min(1, below) * step, n)
    if reach == 1:  # like the loop above: the paper's blurs go no further
        for x in range(n):
            ends = np.uint32(np.uint32(before[x]) + np.uint32(after[x]))
            near = np.uint32(np.uint32(one[x]) + np.uint32(other[x]))
            out[x] = _box_sum(np.uint32(center[x]), near, ends, inner, outer)
        return
    for x in range(n):
        total[x] = 0
    for k in range(1, reach + 1):
        one, other = lanes.values(middle - min(k, above) * step, n), lanes.values(middle + min(k, below) * step, n)
        for x in range(n):
            total[x] = np.uint32(total[x] + np.uint32(one[x]) + np.uint32(other[x]))
    for x in range(n):
        ends = np.uint32(np.uint32(before[x]) + np.uint32(after[x]))
        out[x] = _box_sum(np.uint32(center[x]), total[x], ends, inner, outer)


@kernel
def _box_rows(source, target, box, padded, total):
    """One box blur along each row of `source` -> target (may be the same). padded: a row with room at both ends."""
    height, width = source.shape
    margin = box.reach + 1
    inside = padded[margin : margin + width]
    for y in range(height):
        row = source[y]
        for x in range(width):
            inside[x] = row[x]
        for k in range(margin):
            padded[k] = row[0]
            padded[margin + width + k] = row[width - 1]
        _box_line(inside.ctypes.data, 1, margin, margin, box, total, target[y])


@kernel
def _box_columns(source, target, box, total):
    """One box blur down the columns of `source` -> target."""
    height, width = source.shape
    for y in range(height):
        _box_line(source[y].ctypes.data, width, y, height - 1 - y, box, total, target[y])


@kernel
def transpose(source, target):
    """target[x, y] = source[y, x] for 2-D uint8, in strips of eight rows."""
    height, width = source.shape
    strips = height - height % 8
    for y in range(0, strips, 8):
        for x in range(width):
            column = target[x, y : y + 8]
            for b in range(8):
                column[b] = source[y + b, x]
    for y in range(strips, height):
        for x in range(width):
            target[x, y] = source[y, x]


@kernel
def gaussian_blur(planes, sigma, scratch):
    """Pillow's ImageFilter.GaussianBlur(sigma): three box blurs along the rows, then three down the columns.

    `scratch`: uint8 of the size of two planes. sigma is the standard deviation in pixels (Pillow calls it radius).
    """
    _, height, width = planes.shape
    radius = box_radius(sigma)
    if radius == 0.0:
        return
    reach = int(radius)
    inner = np.uint32(np.float32(1 << 24) / (radius * np.float32(2.0) + np.float32(1.0)))
    outer = (np.uint32(1 << 24) - np.uint32(2 * reach + 1) * inner) // np.uint32(2)
    box = Box(reach, inner, outer)
    total, padded = np.empty(width, np.uint32), np.empty(width + 2 * (reach + 1), np.uint8)
    one = scratch[: height * width].reshape(height, width)
    other = scratch[height * width : 2 * height * width].reshape(height, width)
    for c in range(3):
        plane = planes[c]
        for _ in range(3):
            _box_rows(plane, plane, box, padded, total)
        _box_columns(plane, one, box, total)
        _box_columns(one, other, box, total)
        _box_columns(other, plane, box, total)


@kernel
def interleave(planes, out):
    """Planes [3, height, width] -> pixels [height, width, 3]."""
    _, height, width = planes.shape
    for y in range(height):
        red, green, blue, line = planes[0, y], planes[1, y], planes[2, y], out[y].reshape(-1)
        for x in range(width):
            line[3 * x] = red[x]
            line[3 * x + 1] = green[x]
            line[3 * x + 2] = blue[x]


@kernel
def deinterleave(image, planes):
    """Pixels [height, width, 3] -> planes [3, height, width]."""
    _, height, width = planes.shape
    for y in range(height):
        red, green, blue, line = planes[0, y], planes[1, y], planes[2, y], image[y].reshape(-1)
        for x in range(width):
            red[x] = line[3 * x]
            green[x] = line[3 * x + 1]
            blue[x] = line[3 * x + 2]
