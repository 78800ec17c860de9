"""Shears, translations and rotations of three planes, uint8 [3, height, width], in place: Pillow's, to the bit.

Pillow's `transform(AFFINE)`, unlike its `resize`, does not antialias. Output pixel (x, y) looks at the source point
(a (x + 1/2) + b (y + 1/2) + c, d (x + 1/2) + e (y + 1/2) + f). Where that point lies outside the image, the pixel gets
the fill color; otherwise a polynomial of its 2 x 2 or 4 x 4 neighbours (bilinear, or Keys' cubic with a = -1), the
edge's pixels repeated outwards, computed in float64 and truncated to 8 bits. NEAREST counts in 16.16 fixed point.

Shears and translations slide each row (or, transposed, each column) by an offset of its own and interpolate along it.
Rotations gather RGBX pixels. Both work a row at a time, in loops without branches, so that they vectorise.
"""

import math

import numpy as np

from ffcv_ops.compiled import kernel
from ffcv_ops.kernels.pixels import transpose
from ffcv_ops.kernels.resample import BICUBIC, BILINEAR

NEAREST = 1 + max(BICUBIC, BILINEAR)  # a third interpolation, beside resample's

EDGE = 2  # pixels beyond the image that the cubic may touch


@kernel
def _linear(v1, v2, d):
    return v1 + (v2 - v1) * d


@kernel
def _cubic(v1, v2, v3, v4, d):
    """From v2 (at d = 0) to v3 (at d = 1), in Pillow's order of operations."""
    p2 = v3 - v1
    p3 = 2.0 * (v1 - v2) + v3 - v4
    p4 = v2 - v1 - v3 + v4
    return v2 + d * (p2 + d * (p3 + d * p4))


@kernel
def _to_uint8(value):
    """Truncated and clipped."""
    return np.uint8(min(max(np.int32(value), np.int32(0)), np.int32(255)))


@kernel
def _fixed(value):
    """16.16 fixed point, rounded."""
    return math.floor(value * 65536.0 + 0.5)


@kernel
def _repeat_edge(line, n):
    """Fills the two places before and behind the n values in the middle of `line`."""
    for k in range(EDGE):
        line[k] = line[EDGE]
        line[n + EDGE + k] = line[n + EDGE - 1]


@kernel
def _fill_outside(row, begin, end, value):
    for x in range(begin):
        row[x] = value
    for x in range(end, len(row)):
        row[x] = value


# ---- Rows that slide ----


@kernel
def _row_offset(y, slope, shift, interpolation):
    """How many pixels further right row y looks (NEAREST: a whole number)."""
    if interpolation == NEAREST:
        return np.float64((_fixed(shift + 0.5 + slope * 0.5) + y * _fixed(slope)) >> 16)
    return slope * (y + 0.5) + shift


@kernel
def _inside(offset, n):
    """The positions (begin, end) of a row of n pixels whose source, (x + 1/2) + offset, lies inside the row."""
    begin = min(max(math.ceil(-0.5 - offset), 0), n)
    end = min(max(math.ceil(n - 0.5 - offset), begin), n)
    while end > begin and (end - 0.5) + offset >= n:  # the sum may be rounded up to n
        end -= 1
    return begin, end


@kernel
def _fraction(x, begin, offset, whole):
    """How far beyond the center of pixel begin + x + whole the source of begin + x lies, in 0..1."""
    at = np.float64(np.int32(x)) + begin
    return ((at + 0.5) + offset - 0.5) - (at + whole)


@kernel
def _slide_row(row, offset, interpolation, fill, line):
    """row[x] = row at x + offset, or `fill`. line: uint8, 4 longer than the row.

    Every x has the same whole part of its source: where rounding lifts a source to the next integer, the fraction
    becomes exactly 1, at which the polynomials give the next pixel exactly.
    """
    n = len(row)
    begin, end = _inside(offset, n)
    inner = line[EDGE:]
    for x in range(n):
        inner[x] = row[x]
    _repeat_edge(line, n)
    _fill_outside(row, begin, end, fill)
    out, count, whole = row[begin:], end - begin, np.floor(offset)
    start = begin + int(whole) + EDGE
    v2 = line[start:]
    if interpolation == NEAREST:
        for x in range(count):
            out[x] = v2[x]
        return
    v3 = line[start + 1 :]
    if interpolation == BILINEAR:
        for x in range(count):
            d = _fraction(x, np.float64(begin), offset, whole)
            out[x] = _to_uint8(_linear(np.float64(v2[x]), np.float64(v3[x]), d))
        return
    v1, v4 = line[start - 1 :], line[start + 2 :]
    for x in range(count):
        d = _fraction(x, np.float64(begin), offset, whole)
        value = _cubic(np.float64(v1[x]), np.float64(v2[x]), np.float64(v3[x]), np.float64(v4[x]), d)
        out[x] = _to_uint8(value)


@kernel
def slide(planes, slope, shift, columns, interpolation, fill, scratch):
    """Row y shows what lies slope * (y + 1/2) + shift pixels further right; with `columns`, columns what lies below.

    One of slope and shift is 0: shears have the matrix (1, slope, 0, 0, 1, 0) or (1, 0, 0, slope, 1, 0), translations
    (1, 0, shift, 0, 1, 0) or (1, 0, 0, 0, 1, shift). A shift to nearest neighbours is a whole number.
    fill: (red, green, blue). scratch: uint8, the size of a plane.
    """
    _, height, width = planes.shape
    line = np.empty(max(height, width) + 2 * EDGE, np.uint8)
    for c in range(3):
        plane = planes[c]
        rows = scratch[: height * width].reshape(width, height) if columns else plane
        if columns:
            transpose(plane, rows)
        for y in range(len(rows)):
            offset = _row_offset(y, slope, shift, interpolation)
            _slide_row(rows[y], offset, interpolation, fill[c], line[: rows.shape[1] + 2 * EDGE])
        if columns:
            transpose(rows, plane)


# ---- Rotation ----


@kernel
def _halves(x):
    """x as the sum of two floats of at most 26 bits (Veltkamp), whose products are exact."""
    scaled = x * 134217729.0  # 2**27 + 1
    high = scaled - (scaled - x)
    return high, x - high


@kernel
def _to_15_decimals(x):
    """Python's round(x, 15) for |x| <= 1: on the exact product with 1e15, which float64 cannot hold."""
    product = abs(x) * 1e15
    high, low = _halves(abs(x))
    factor_high, factor_low = _halves(1e15)
    error = ((high * factor_high - product) + high * factor_low + low * factor_high) + low * factor_low
    whole = np.floor(product)
    if (product - whole) + error >= 0.5:
        whole += 1.0
    return math.copysign(whole / 1e15, x)


@kernel
def rotation(height, width, degrees):
    """The matrix (a, b, c, d, e, f) of Pillow's `rotate(degrees)`: about the center, counter-clockwise."""
    angle = -math.radians(degrees % 360.0)
    cosine, sine = _to_15_decimals(math.cos(angle)), _to_15_decimals(math.sin(angle))
    x, y = width / 2.0, height / 2.0
    return cosine, sine, (cosine * -x + sine * -y) + x, -sine, cosine, (-sine * -x + cosine * -y) + y


@kernel
def _pack(planes, padded):
    """Planes -> RGBX pixels, uint32 [height + 4, width + 4], with the edge repeated."""
    _, height, width = planes.shape
    for y in range(height):
        red, green, blue, line = planes[0, y], planes[1, y], planes[2, y], padded[y + EDGE]
        inner = line[EDGE:]
        for x in range(width):
            inner[x] = np.uint32(red[x]) | np.uint32(green[x]) << np.uint32(8) | np.uint32(blue[x]) << np.uint32(16)
        _repeat_edge(line, width)
    for k in range(EDGE):
        for x in range(width + 2 * EDGE):
            padded[k, x] = padded[EDGE, x]
            padded[height + EDGE + k, x] = padded[height + EDGE - 1, x]


@kernel
def _looks_inside(matrix, x, y, height, width):
    a, b, c, d, e, f = matrix
    at_x, at_y = (a * (x + 0.5) + b * (y + 0.5)) + c, (d * (x + 0.5) + e * (y + 0.5)) + f
    return 0.0 <= at_x < width and 0.0 <= at_y < height


@kernel
def _span(matrix, y, height, width):
    """The positions (begin, end) of row y that look inside the image: one interval, since both coordinates are
    monotonic along the row, rounding included."""
    begin, end = 0, width
    while begin < width and not _looks_inside(matrix, begin, y, height, width):
        begin += 1
    while end > begin and not _looks_inside(matrix, end - 1, y, height, width):
        end -= 1
    return begin, end


@kernel
def _look(matrix, y, begin, count, stride, first, dx, dy):
    """For each pixel of a row: index of the first of its 4 x 4 neighbours in the padded source, and the fractions."""
    a, b, c, d, e, f = matrix
    row_x, row_y = b * (y + 0.5), e * (y + 0.5)
    for x in range(count):
        at = np.float64(np.int32(x)) + (begin + 0.5)
        at_x, at_y = (a * at + row_x + c) - 0.5, (d * at + row_y + f) - 0.5
        whole_x, whole_y = np.floor(at_x), np.floor(at_y)
        dx[x], dy[x] = at_x - whole_x, at_y - whole_y
        first[x] = np.int32((whole_y + (EDGE - 1)) * stride + (whole_x + (EDGE - 1)))


@kernel
def _gather(source, first, count, taps):
    """taps[k, x] = source[first[x] + k]."""
    for x in range(count):
        at = first[x]
        for k in range(4):
            taps[k, x] = source[at + np.uint32(k)]


@kernel
def _across(taps, channel, dx, count, interpolation, out):
    """One channel, interpolated along the row: float64, 256**channel times too large.

    Masking a channel out without shifting it is quicker, and powers of two change no rounding.
    """
    t1, t2, t3, t4 = taps[0], taps[1], taps[2], taps[3]
    mask = np.uint32(255 << 8 * channel)
    if interpolation == BILINEAR:
        for x in range(count):
            out[x] = _linear(np.float64(np.int32(t2[x] & mask)), np.float64(np.int32(t3[x] & mask)), dx[x])
        return
    for x in range(count):
        v1, v2 = np.float64(np.int32(t1[x] & mask)), np.float64(np.int32(t2[x] & mask))
        v3, v4 = np.float64(np.int32(t3[x] & mask)), np.float64(np.int32(t4[x] & mask))
        out[x] = _cubic(v1, v2, v3, v4, dx[x])


@kernel
def _down(lines, channel, dy, count, interpolation, out):
    """Four lines of `_across`, interpolated down the columns: uint8."""
    v1, v2, v3, v4 = lines[0], lines[1], lines[2], lines[3]
    scale = 1.0 / (1 << 8 * channel)
    if interpolation == BILINEAR:
        for x in range(count):
            out[x] = _to_uint8(_linear(v2[x], v3[x], dy[x]) * scale)
        return
    for x in range(count):
        out[x] = _to_uint8(_cubic(v1[x], v2[x], v3[x], v4[x], dy[x]) * scale)


@kernel
def _rotate_smoothly(planes, matrix, source, interpolation, fill):
    _, height, width = planes.shape
    stride = width + 2 * EDGE
    first, dx, dy = np.empty(width, np.uint32), np.empty(width), np.empty(width)
    taps, lines = np.empty((4, 4, width), np.uint32), np.empty((4, width))
    rows = (1, 3) if interpolation == BILINEAR else (0, 4)
    for y in range(height):
        begin, end = _span(matrix, y, height, width)
        count = end - begin
        _look(matrix, y, begin, count, stride, first, dx, dy)
        for k in range(rows[0], rows[1]):
            _gather(source[k * stride :], first, count, taps[k])
        for c in range(3):
            row = planes[c, y]
            for k in range(rows[0], rows[1]):
                _across(taps[k], c, dx, count, interpolation, lines[k])
            _down(lines, c, dy, count, interpolation, row[begin:])
            _fill_outside(row, begin, end, fill[c])


@kernel
def _rotate_to_nearest(planes, matrix, source, fill):
    _, height, width = planes.shape
    a, b, c, d, e, f = matrix
    right, down = (_fixed(a), _fixed(d)), (_fixed(b), _fixed(e))
    start_x, start_y = _fixed(c + a * 0.5 + b * 0.5), _fixed(f + d * 0.5 + e * 0.5)
    outside = np.uint32(fill[0] | fill[1] << 8 | fill[2] << 16)
    for y in range(height):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        at_x, at_y = start_x + y * down[0], start_y + y * down[1]
        for x in range(width):
            i, j = at_y >> 16, at_x >> 16
            inside = 0 <= i < height and 0 <= j < width
            pixel = source[(i + EDGE) * (width + 2 * EDGE) + j + EDGE] if inside else outside
            red[x] = pixel & np.uint32(255)
            green[x] = pixel >> np.uint32(8) & np.uint32(255)
            blue[x] = pixel >> np.uint32(16)
            at_x += right[0]
            at_y += right[1]


@kernel
def rotate_scratch(height, width):
    """uint8 values that `rotate` needs."""
    return 4 * (height + 2 * EDGE) * (width + 2 * EDGE)


@kernel
def rotate(planes, degrees, interpolation, fill, scratch):
    """Pillow's `rotate(degrees)`: counter-clockwise about the center, same size. fill: (red, green, blue)."""
    _, height, width = planes.shape
    source = scratch[: rotate_scratch(height, width)].view(np.uint32)
    _pack(planes, source.reshape(height + 2 * EDGE, width + 2 * EDGE))
    matrix = rotation(height, width, degrees)
    if interpolation == NEAREST:
        _rotate_to_nearest(planes, matrix, source, fill)
    else:
        _rotate_smoothly(planes, matrix, source, interpolation, fill)
