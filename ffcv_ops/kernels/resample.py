"""Antialiased resampling, bit for bit Pillow's `resize` (BICUBIC, BILINEAR).

Pillow's arithmetic: one pass along each axis with rounding and clipping to uint8 in between, the horizontal one first
(since version 13, now and then the vertical one); weights are float64, normalised, then fixed point with 22 fractional
bits. Only the summation order inside a pixel is free, and integers do not mind. What is different is the layout: a
weighted sum of whole lines needs no shuffling inside the sum. The vertical pass has such lines, the rows. For the
horizontal pass sixteen rows at a time are turned, so that a line holds one column of them; this block stays in the
first-level cache. In: RGBX pixels. Out: three planes.
"""

import math

import numpy as np

from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import lanes

BICUBIC, BILINEAR = 0, 1
NAMES = {"bicubic": BICUBIC, "bilinear": BILINEAR}


@kernel
def _support(interpolation):
    return 2.0 if interpolation == BICUBIC else 1.0


@kernel
def _filter(x, interpolation):
    """The kernel at distance x: Keys' cubic with a = -1/2, or the triangle."""
    x = abs(x)
    if interpolation == BILINEAR:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@kernel
def taps(low, high, full, interpolation):
    """The most source pixels that one output pixel can depend on."""
    return 2 * math.ceil(_support(interpolation) * max((high - low) / full, 1.0)) + 1


@kernel
def _mirror(i, n):
    """Index i of a signal of n values that is reflected at its ends without repeating them (i may be outside)."""
    if n == 1:
        return 0
    period = 2 * (n - 1)
    i = i % period
    return period - i if i >= n else i


@kernel
def axis_weights(low, high, limit_low, limit_high, full, offset, flip, interpolation, first, count, weights):
    """The weights of one axis for a window of the resized signal.

    The source interval [low, high) is resized to `full` pixels; output pixel j is number offset + j of them, or,
    with `flip`, offset + n-1-j; outside 0..full-1 it is mirrored. Source pixels outside [limit_low, limit_high) are
    never touched: the limits of the box for crop-then-resize, of the whole image for Pillow's `resize(box=...)`.
    Fills first [n] (first source pixel), count [n] and weights [n, taps] (int32, 22 fractional bits).
    """
    n = len(first)
    scale = (high - low) / full
    stretch = max(scale, 1.0)
    support = _support(interpolation) * stretch
    w = np.empty(weights.shape[1], np.float64)
    for j in range(n):
        at = _mirror(offset + (n - 1 - j if flip else j), full)
        centre = low + (at + 0.5) * scale
        begin = max(int(centre - support + 0.5), limit_low)
        end = min(int(centre + support + 0.5), limit_high)
        total = 0.0
        for k in range(end - begin):
            w[k] = _filter((k + begin - centre + 0.5) * (1.0 / stretch), interpolation)
            total += w[k]
        for k in range(end - begin):
            fixed = w[k] / total * (1 << lanes.FRACTION)
            weights[j, k] = int(fixed - 0.5) if fixed < 0.0 else int(fixed + 0.5)
        first[j] = begin
        count[j] = end - begin


@kernel
def vertical_first(box_height, box_width, full_height, full_width):
    """Whether Pillow (13) does the vertical pass first: where it removes more than twice what the other one does."""
    return box_height - full_height > 2 * max(box_width - full_width, 0)


@kernel
def _whole(n, unit):
    """n, rounded up to a multiple of `unit`."""
    return (n + unit - 1) // unit * unit


@kernel
def _vertical(source, stride, begin, size, first, count, weights, out):
    """The vertical pass over bytes: rows `stride` apart from address `source` on, which is row number `begin`, become
    len(first) rows of `size` bytes, a multiple of a line, at address `out`."""
    for i in range(len(first)):
        top, w = source + (first[i] - begin) * stride, weights[i].ctypes.data
        for x in range(0, size, lanes.LINE):
            lanes.weighted_line(top + x, stride, w, count[i], out + i * size + x)


@kernel
def _horizontal(source, stride, height, columns, first, count, weights, block, narrow, out, pitch):
    """The horizontal pass: `height` rows of RGBX pixels, `stride` bytes apart, whose column columns[0] is at address
    `source`, become rows of `pitch` bytes at `out`: the red values, from pitch / 3 on the green, then the blue ones.

    block, narrow: addresses of scratch memory for sixteen turned rows before and after. Rows come in sixteens, so
    up to fifteen more than `height` are read and written.
    """
    for y in range(0, height, 16):
        for x in range(0, columns[1] - columns[0], 16):
            lanes.lines_of_pixels(source + y * stride + 4 * x, stride, block + lanes.LINE * x)
        for j in range(len(first)):
            column, w = block + lanes.LINE * (first[j] - columns[0]), weights[j].ctypes.data
            lanes.weighted_line(column, lanes.LINE, w, count[j], narrow + lanes.LINE * j)
        for colour in range(3):
            row = out + y * pitch + colour * (pitch // 3)
            for j in range(0, len(first), 16):
                lanes.rows_of_lines(narrow + lanes.LINE * j + 16 * colour, row + j, pitch)


@kernel
def _split(rows, pitch, planes):
    """Rows of `pitch` bytes, as the horizontal pass leaves them -> planes."""
    _, height, width = planes.shape
    for y in range(height):
        for colour in range(3):
            start = y * pitch + colour * (pitch // 3)
            row, line = rows[start : start + width], planes[colour, y]
            for x in range(width):
                line[x] = row[x]


@kernel
def take_rows(pixels, width, y, height, down_first, rows, columns, first, count, weights, scratch, planes):
    """Resamples an image that comes in parts. With the last row, `planes` (uint8 [3, size_y, size_x]) is the result.

    pixels: rows y to y + height of the image, RGBX (uint32), `width` pixels each, with room for sixteen rows and pixels
    more; what is there does not matter. All parts but the last have a multiple of sixteen rows; with `down_first`, the
    order of the passes (see `vertical_first`), there is one part. rows, columns: (begin, end) of what is needed, which
    the parts cover. first, count, weights: those of the vertical axis at index 0 and of the horizontal one at index 1.
    scratch: uint8, `scratch_size(...)`, the same for all parts.
    """
    size_y, size_x = planes.shape[1], planes.shape[2]
    seen = columns[1] - columns[0]
    pitch = lanes.LINE * (_whole(size_x, 16) // 16)
    block = scratch.ctypes.data
    narrow = block + lanes.LINE * _whole(seen, 16)
    middle = narrow + lanes.LINE * _whole(size_x, 16)
    source, stride = pixels.ctypes.data + 4 * columns[0], 4 * width
    if down_first:
        row_size = _whole(4 * seen, lanes.LINE)
        finished = middle + _whole(size_y, 16) * row_size + 64
        _vertical(source, stride, rows[0], row_size, first[0], count[0], weights[0], middle)
        _horizontal(middle, row_size, size_y, columns, first[1], count[1], weights[1], block, narrow, finished, pitch)
    else:
        finished = middle + _whole(rows[1] - rows[0], 16) * pitch
        target = middle + (y - rows[0]) * pitch
        _horizontal(source, stride, height, columns, first[1], count[1], weights[1], block, narrow, target, pitch)
        if y + height < rows[1]:
            return
        _vertical(middle, pitch, rows[0], pitch, first[0], count[0], weights[0], finished)
    _split(lanes.values(finished, size_y * pitch), pitch, planes)


@kernel
def scratch_size(longest, size):
    """Bytes that `take_rows` needs for images with sides of up to `longest`."""
    side, out = _whole(longest, 16), _whole(size, 16)
    turned = lanes.LINE * (side + out)
    row_first = (side + out) * 3 * out
    column_first = out * _whole(4 * side, lanes.LINE) + 64 + out * 3 * out
    return turned + max(row_first, column_first)
