"""Sixteen lanes at a time: the inner loops of resampling as vector instructions whose sums stay in registers.

Numba's loops keep a sum over rows in memory, because an array cannot live in a register. The intrinsics here
are written in LLVM's vector types instead, which LLVM maps to whatever the processor has (AVX-512, AVX2, NEON ...).
They take addresses. A *line* is 48 bytes: sixteen values of red, sixteen of green, sixteen of blue.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from ffcv_ops.compiled import kernel

LINE = 48  # bytes

FRACTION = 22  # bits of a weight; 8 (value) + 22 + 2 (room for overshoot) = 32

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES, _INTS = ir.VectorType(ir.IntType(8), 16), ir.VectorType(_I32, 16)


def _splat(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * 16)


def _load(builder, kind, address, offset: int = 0):
    where = builder.add(address, ir.Constant(_I64, offset))
    return builder.load(builder.inttoptr(where, kind.as_pointer()), align=1)


def _store(builder, vector, address, offset: int = 0):
    where = builder.add(address, ir.Constant(_I64, offset))
    builder.store(vector, builder.inttoptr(where, vector.type.as_pointer()), align=1)


def _choose(builder, one, other, indices):
    """The lanes of two vectors that `indices` names, those of `other` counted from len(one) on."""
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_I32, len(indices)), indices))


def _transpose(builder, rows):
    """Sixteen vectors of sixteen lanes, transposed: blocks of 8, 4, 2 and 1 change places across the diagonal."""
    rows = list(rows)
    for block in (8, 4, 2, 1):
        upper = [j if not j & block else 16 + j - block for j in range(16)]
        lower = [j + block if not j & block else 16 + j for j in range(16)]
        for i in range(16):
            if not i & block:
                one, other = rows[i], rows[i + block]
                rows[i] = _choose(builder, one, other, upper)
                rows[i + block] = _choose(builder, one, other, lower)
    return rows


@intrinsic
def weighted_line(typing_context, rows, stride, weights, count, out):
    """Line `out` = sum over k < count of weights[k] * line (rows + k * stride), rounded and clipped to 0..255.

    weights: int32 with FRACTION fractional bits. count: at least 1.
    """

    def generate(context, builder, signature, arguments):
        rows, stride, weights, count, out = arguments
        before = builder.block
        loop, done = builder.append_basic_block("taps"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, sums, after = builder.phi(_I64), [builder.phi(_INTS) for _ in range(0, LINE, 16)], []
        k.add_incoming(ir.Constant(_I64, 0), before)
        row = builder.add(rows, builder.mul(k, stride))
        weight = _load(builder, _I32, builder.add(weights, builder.mul(k, ir.Constant(_I64, 4))))
        single = builder.insert_element(ir.Constant(_INTS, ir.Undefined), weight, ir.Constant(_I32, 0))
        weight = _choose(builder, single, single, [0] * 16)
        for total in sums:
            total.add_incoming(_splat(1 << (FRACTION - 1)), before)
        for part, total in enumerate(sums):
            values = builder.zext(_load(builder, _BYTES, row, 16 * part), _INTS)
            after.append(builder.add(total, builder.mul(values, weight)))
        following_k = builder.add(k, ir.Constant(_I64, 1))
        k.add_incoming(following_k, loop)
        for total, value in zip(sums, after, strict=True):
            total.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following_k, count), loop, done)
        builder.position_at_end(done)
        for number, total in enumerate(after):
            value = builder.ashr(total, _splat(FRACTION))
            value = builder.select(builder.icmp_signed("<", value, _splat(0)), _splat(0), value)
            value = builder.select(builder.icmp_signed(">", value, _splat(255)), _splat(255), value)
            _store(builder, builder.trunc(value, _BYTES), out, 16 * number)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def lines_of_pixels(typing_context, source, stride, out):
    """16 x 16 RGBX pixels -> sixteen lines, one for each column: the sixteen rows of `source`, `stride` bytes apart."""

    def generate(context, builder, signature, arguments):
        source, stride, out = arguments
        rows = [
            _load(builder, _INTS, builder.add(source, builder.mul(stride, ir.Constant(_I64, row)))) for row in range(16)
        ]
        for number, column in enumerate(_transpose(builder, rows)):
            rgbx = builder.bitcast(column, ir.VectorType(ir.IntType(8), 64))
            line = _choose(builder, rgbx, rgbx, [4 * row + channel for channel in range(3) for row in range(16)])
            _store(builder, line, out, LINE * number)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def rows_of_lines(typing_context, source, out, stride):
    """The sixteen values of one color in sixteen lines (`source`: the first) -> sixteen rows `stride` bytes apart."""

    def generate(context, builder, signature, arguments):
        source, out, stride = arguments
        lines = [_load(builder, _BYTES, source, LINE * number) for number in range(16)]
        for number, row in enumerate(_transpose(builder, lines)):
            _store(builder, row, builder.add(out, builder.mul(stride, ir.Constant(_I64, number))))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _pointer(typing_context, address):
    """An integer address as a pointer to bytes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(address), generate


@kernel
def values(address, n):
    """The n bytes at an address as an array (uint8 [n])."""
    return carray(_pointer(address), n, np.uint8)
