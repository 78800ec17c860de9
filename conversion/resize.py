"""Pillow's antialiased bicubic `resize`, bit for bit, by the training pipeline's kernels, which take a fraction of its
time."""

import math

import numpy as np

from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import resample
from ffcv_ops.kernels.pixels import interleave


@kernel
def resize(pixels, height, width, box_height, box_width, out):
    """The upper left box (its sides may be fractions) of height x width pixels -> out, uint8 [height, width, 3].

    pixels: uint32, R in the lowest byte, then G and B, with room for sixteen rows and pixels more behind the last one.
    """
    size_y, size_x, _ = out.shape
    size, longest = max(size_y, size_x), max(height, width)
    taps = resample.taps(0, box_height, size_y, resample.BICUBIC)
    taps = max(taps, resample.taps(0, box_width, size_x, resample.BICUBIC))
    first, count = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    weights, spans = np.empty((2, size, taps), np.int32), np.empty((2, 2), np.int64)
    for axis in range(2):
        box, side, n = (box_height, height, size_y) if axis == 0 else (box_width, width, size_x)
        begin, number = first[axis, :n], count[axis, :n]
        resample.axis_weights(0.0, box, 0, side, n, 0, False, resample.BICUBIC, begin, number, weights[axis, :n])
        spans[axis, 0], spans[axis, 1] = begin.min(), (begin + number).max()
    down_first = resample.vertical_first(math.ceil(box_height), math.ceil(box_width), size_y, size_x)
    scratch = np.empty(resample.scratch_size(longest, size), np.uint8)
    planes = np.empty((3, size_y, size_x), np.uint8)
    rows, columns = (spans[0, 0], spans[0, 1]), (spans[1, 0], spans[1, 1])
    resample.take_rows(
        pixels[rows[0] * width :], width, rows[0], rows[1] - rows[0], down_first, rows, columns,
        (first[0, :size_y], first[1, :size_x]), (count[0, :size_y], count[1, :size_x]),
        (weights[0], weights[1]), scratch, planes,
    )  # fmt: skip
    interleave(planes, out)
