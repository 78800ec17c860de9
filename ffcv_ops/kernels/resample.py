"""Antialiased resampling, bit for bit the `resize` (BICUBIC, BILINEAR) of the Pillow that the paper trained with.

Pillow's arithmetic: one pass along each axis with rounding and clipping to uint8 in between, the horizontal one first;
weights are float64, normalized, then fixed point with 22 fractional bits. (Pillow 13 does the vertical pass first where
that removes more than twice as much; docs/reproduce.md, D27. One axis at a time, all versions agree.) Only the
summation order inside a pixel is free, and integers do not mind. What is different is the layout: a weighted sum of
whole lines needs no shuffling inside the sum. The vertical pass has such lines, the rows. For the horizontal pass
sixteen rows at a time are transposed, so that a line holds one column of them; this tile stays in the first-level
cache. In: RGBX pixels. Out: three planes.

    work = workspace(longest, height, width, interpolation)     # once for many images
    rows = fill_taps(axis_of_rows, interpolation, work.vertical)
    columns = fill_taps(axis_of_columns, interpolation, work.horizontal)
    take_rows(Touched(rows, columns), pixels, ..., work, planes)    # until all rows have come
"""

import math
from typing import NamedTuple

import numpy as np

from ffcv_ops.compiled import kernel, module
from ffcv_ops.kernels.span import Span

lanes = module("ffcv_ops.kernels.lanes")  # imports numba

BICUBIC, BILINEAR = 0, 1
NAMES = {"bicubic": BICUBIC, "bilinear": BILINEAR}

TILE = 16  # rows and columns that are transposed together: the lanes of a line


class Axis(NamedTuple):
    """One axis of a resize, and the window of its result that is kept.

    The source interval [low, high) is resized to `full` pixels; pixel j of the window is number offset + j of them, or,
    with `flip`, offset + n-1-j of n. Outside 0..full-1 the result is mirrored. Source pixels outside `limits` are never
    touched: the limits of the box for crop-then-resize, of the whole image for Pillow's `resize(box=...)`.
    """

    low: float
    high: float
    limits: Span
    full: int
    offset: int
    flip: bool


class Taps(NamedTuple):
    """The source pixels of each of the n pixels along one axis of the result, and their weights."""

    first: np.ndarray  # int64 [n]: the first source pixel
    count: np.ndarray  # int64 [n]: how many there are
    weights: np.ndarray  # int32 [n, most]: with 22 fractional bits, `count` of them in a row


class Workspace(NamedTuple):
    """One thread's memory for resizing; `workspace` makes it."""

    vertical: Taps
    horizontal: Taps
    scratch: np.ndarray  # uint8


class Touched(NamedTuple):
    """What of the source a resize depends on: what `fill_taps` returns for either axis."""

    rows: Span
    columns: Span


@kernel
def _support(interpolation):
    return 2.0 if interpolation == BICUBIC else 1.0


@kernel
def _filter(x, interpolation):
    """The filter at distance x: Keys' cubic with a = -1/2, or the triangle."""
    x = abs(x)
    if interpolation == BILINEAR:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@kernel
def _mirror(i, n):
    """Index i of a signal of n values that is reflected at its ends without repeating them (i may be outside)."""
    if n == 1:
        return 0
    period = 2 * (n - 1)
    i = i % period
    return period - i if i >= n else i


@kernel
def fill_taps(axis, interpolation, taps):
    """Fills the taps of one axis (n: how many there are). Returns the `Span` of source pixels that they touch."""
    first, count, weights = taps
    n = len(first)
    scale = (axis.high - axis.low) / axis.full
    stretch = max(scale, 1.0)  # the filter is widened where pixels are taken away, never narrowed
    support = _support(interpolation) * stretch
    w = np.empty(weights.shape[1], np.float64)
    for j in range(n):
        at = _mirror(axis.offset + (n - 1 - j if axis.flip else j), axis.full)
        center = axis.low + (at + 0.5) * scale
        begin = max(int(center - support + 0.5), axis.limits.begin)
        end = min(int(center + support + 0.5), axis.limits.end)
        total = 0.0
        for k in range(end - begin):
            w[k] = _filter((k + begin - center + 0.5) * (1.0 / stretch), interpolation)
            total += w[k]
        for k in range(end - begin):
            fixed = w[k] / total * (1 << lanes.FRACTION)
            weights[j, k] = int(fixed - 0.5) if fixed < 0.0 else int(fixed + 0.5)  # half away from zero
        first[j] = begin
        count[j] = end - begin
    return Span(first.min(), (first + count).max())


@kernel
def _round_up(n):
    """n, rounded up to whole tiles."""
    return (n + TILE - 1) // TILE * TILE


@kernel
def _row_bytes(width):
    """Bytes of a row that the horizontal pass leaves: a line for each sixteen pixels."""
    return lanes.LINE * (_round_up(width) // TILE)


@kernel
def _vertical(source, stride, begin, size, taps, out):
    """The vertical pass over bytes: rows `stride` bytes apart from address `source` on, which is row number `begin`,
    become a row of `size` bytes, a multiple of a line, for each of the taps, at address `out`."""
    first, count, weights = taps
    for i in range(len(first)):
        top, w = source + (first[i] - begin) * stride, weights[i].ctypes.data
        for x in range(0, size, lanes.LINE):
            lanes.weighted_line(top + x, stride, w, count[i], out + i * size + x)


@kernel
def _horizontal(source, stride, height, columns, taps, tile, out):
    """The horizontal pass: `height` rows of RGBX pixels, `stride` bytes apart, whose column columns.begin is at address
    `source`, become rows of `_row_bytes` at `out`: all red values of a row, then all green, then all blue ones.

    tile: address of scratch memory for sixteen transposed rows before the pass and, behind them, after it. Rows come in
    sixteens, so up to fifteen more than `height` are read and written.
    """
    first, count, weights = taps
    pitch = _row_bytes(len(first))
    narrow = tile + lanes.LINE * _round_up(columns.end - columns.begin)
    for y in range(0, height, TILE):
        for x in range(0, columns.end - columns.begin, TILE):
            lanes.lines_of_pixels(source + y * stride + 4 * x, stride, tile + lanes.LINE * x)
        for j in range(len(first)):
            column, w = tile + lanes.LINE * (first[j] - columns.begin), weights[j].ctypes.data
            lanes.weighted_line(column, lanes.LINE, w, count[j], narrow + lanes.LINE * j)
        for color in range(3):
            row = out + y * pitch + color * (pitch // 3)
            for j in range(0, len(first), TILE):
                lanes.rows_of_lines(narrow + lanes.LINE * j + 16 * color, row + j, pitch)


@kernel
def _split(rows, pitch, planes):
    """Rows of `pitch` bytes, as the horizontal pass leaves them -> planes."""
    _, height, width = planes.shape
    for y in range(height):
        for color in range(3):
            start = y * pitch + color * (pitch // 3)
            row, line = rows[start : start + width], planes[color, y]
            for x in range(width):
                line[x] = row[x]


@kernel
def take_rows(touched, pixels, width, y, height, work, planes):
    """Resamples an image that comes in parts. With the last row, `planes` (uint8 [3, size_y, size_x]) is the result.

    touched: its rows are what the parts cover. pixels: uint32 RGBX, rows y to y + height of the image, `width` pixels
    each, with room for sixteen rows and pixels more; what is there does not matter. All parts but the last have a
    multiple of sixteen rows. work: the `Workspace` with the taps of both axes, the same for all parts.
    """
    rows, columns = touched
    size_y, size_x = planes.shape[1], planes.shape[2]
    seen, pitch = columns.end - columns.begin, _row_bytes(size_x)
    tile = work.scratch.ctypes.data
    between = tile + lanes.LINE * (_round_up(seen) + _round_up(size_x))  # what the horizontal pass leaves
    source, narrow = pixels.ctypes.data + 4 * columns.begin, between + (y - rows.begin) * pitch
    _horizontal(source, 4 * width, height, columns, work.horizontal, tile, narrow)
    if y + height < rows.end:
        return
    finished = between + _round_up(rows.end - rows.begin) * pitch
    _vertical(between, pitch, rows.begin, pitch, work.vertical, finished)
    _split(lanes.values(finished, size_y * pitch), pitch, planes)


@kernel
def workspace(longest, size_y, size_x, interpolation):
    """A `Workspace` for results of size_y x size_x from images with sides of up to `longest`."""
    side, height, width = _round_up(longest), _round_up(size_y), _round_up(size_x)
    scratch = np.empty(lanes.LINE * (side + width) + (side + height) * _row_bytes(width), np.uint8)
    return Workspace(_taps(longest, size_y, interpolation), _taps(longest, size_x, interpolation), scratch)


@kernel
def _taps(longest, size, interpolation):
    most = 2 * math.ceil(_support(interpolation) * max(longest / size, 1.0)) + 1  # pixels that one can depend on
    return Taps(np.empty(size, np.int64), np.empty(size, np.int64), np.empty((size, most), np.int32))
