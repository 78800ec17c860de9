"""Antialiased resampling, bit for bit Pillow's `resize` (BICUBIC, BILINEAR).

Pillow's arithmetic: one pass along each axis with rounding and clipping to uint8 in between, the horizontal one first
(since version 13, now and then the vertical one); weights are float64, normalised, then fixed point with 22 fractional
bits. Only the summation order inside a pixel is free, and integers do not mind. What is different is the layout:
weighted sums of whole *rows* vectorise, sums along a row do not, so the horizontal pass runs on a transposed image, and
pixels travel as uint32 RGBX. Output: three planes.
"""

import math

import numpy as np

from ffcv_ops.compiled import kernel

BICUBIC, BILINEAR = 0, 1
NAMES = {"bicubic": BICUBIC, "bilinear": BILINEAR}

_FRACTION = 22  # bits; 8 (value) + 22 + 2 (room for overshoot) = 32
_HALF = np.int32(1 << (_FRACTION - 1))


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
            fixed = w[k] / total * (1 << _FRACTION)
            weights[j, k] = int(fixed - 0.5) if fixed < 0.0 else int(fixed + 0.5)
        first[j] = begin
        count[j] = end - begin


@kernel
def _to_uint8(total):
    """Drops the fraction (the half is already in) and clips to 0..255."""
    return np.uint8(min(max(total >> np.int32(_FRACTION), np.int32(0)), np.int32(255)))


@kernel
def _sum_rows(rows, first, count, weights, total):
    """total[x] = 1/2 + sum over k of weights[k] * rows[first + k, x], four rows at a time."""
    n = len(total)
    for x in range(n):
        total[x] = _HALF
    k = 0
    while k + 4 <= count:
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        r0, r1, r2, r3 = rows[first + k], rows[first + k + 1], rows[first + k + 2], rows[first + k + 3]
        for x in range(n):
            total[x] += w0 * np.int32(r0[x]) + w1 * np.int32(r1[x]) + w2 * np.int32(r2[x]) + w3 * np.int32(r3[x])
        k += 4
    while k < count:
        w, row = weights[k], rows[first + k]
        for x in range(n):
            total[x] += w * np.int32(row[x])
        k += 1


@kernel
def _transpose(source, target):
    """target[x, y] = source[y, x] for 2-D uint32, in strips of eight rows so that writes fill cache lines."""
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
def vertical_first(box_height, box_width, full_height, full_width):
    """Whether Pillow (13) does the vertical pass first: where it removes more than twice what the other one does."""
    return box_height - full_height > 2 * max(box_width - full_width, 0)


@kernel
def _resize_rows(source, first, offset, count, weights, total, out):
    """out[i] = weighted sum of rows of `source`; both uint32 RGBX [rows, n]."""
    source_bytes = source.view(np.uint8)
    line = total[: source_bytes.shape[1]]
    for i in range(len(out)):
        _sum_rows(source_bytes, first[i] - offset, count[i], weights[i], line)
        out_bytes = out[i].view(np.uint8)
        for x in range(len(line)):
            out_bytes[x] = _to_uint8(line[x])


@kernel
def _split(image, planes):
    """RGBX pixels -> three planes."""
    for y in range(image.shape[0]):
        row = image[y].view(np.uint8)
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(image.shape[1]):
            red[x] = row[4 * x]
            green[x] = row[4 * x + 1]
            blue[x] = row[4 * x + 2]


@kernel
def _take(memory, start, rows, columns):
    """The next rows x columns values of the scratch memory as an array, and where the rest begins."""
    end = start + rows * columns
    return memory[start:end].reshape(rows, columns), end


@kernel
def resample(source, down_first, rows, columns, first, count, weights, scratch, planes):
    """Resamples RGBX pixels `source` (uint32 [height, width]) into `planes` (uint8 [3, size_y, size_x]).

    first, count, weights: those of the vertical axis at index 0 and of the horizontal one at index 1, with positions
    relative to the source. rows, columns: (begin, end) of what they touch. down_first: the order of the passes, see
    `vertical_first`. scratch: uint32, at least `scratch_size(...)` values.
    """
    size_y, size_x = planes.shape[1], planes.shape[2]
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    seen = source[rows[0] : rows[1], columns[0] : columns[1]]
    upright, end = _take(scratch, 0, size_y, size_x)
    turned, end = _take(scratch, end, width, size_y if down_first else height)
    narrow, end = _take(scratch, end, size_x, size_y if down_first else height)
    middle, end = _take(scratch, end, size_y if down_first else height, width if down_first else size_x)
    total = scratch[end:].view(np.int32)
    if down_first:
        _resize_rows(np.ascontiguousarray(seen), first[0], rows[0], count[0], weights[0], total, middle)
        _transpose(middle, turned)
        _resize_rows(turned, first[1], columns[0], count[1], weights[1], total, narrow)
        _transpose(narrow, upright)
    else:
        _transpose(seen, turned)
        _resize_rows(turned, first[1], columns[0], count[1], weights[1], total, narrow)
        _transpose(narrow, middle)
        _resize_rows(middle, first[0], rows[0], count[0], weights[0], total, upright)
    _split(upright, planes)


@kernel
def scratch_size(area, longest, size):
    """uint32 values that `resample` needs for images of up to `area` pixels with sides of up to `longest`."""
    return area + size * size + 2 * size * max(longest, size) + 4 * max(longest, size)
