"""XXH64 (seed 0) of bytes at an address, compiled: it tells whether a stored image is still the one that was written.

After Yann Collet's specification, xxhash_spec.md of xxHash.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ffcv_ops.compiled import kernel

_1 = np.uint64(0x9E3779B185EBCA87)
_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_3 = np.uint64(0x165667B19E3779F9)
_4 = np.uint64(0x85EBCA77C2B2AE63)
_5 = np.uint64(0x27D4EB2F165667C5)
_BLOCK = 32  # bytes that the four sums take at a time


def _load(bits):
    """An intrinsic: address (uint64) -> the little-endian number of so many bits there, as uint64."""

    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            return builder.zext(builder.load(pointer, align=1), ir.IntType(64))

        return types.uint64(types.uint64), generate

    return load


_u8, _u32, _u64 = _load(8), _load(32), _load(64)


@kernel
def _rotate(x, n):
    return x << np.uint64(n) | x >> np.uint64(64 - n)


@kernel
def _round(total, value):
    return _rotate(total + value * _2, 31) * _1


@kernel
def _merge(total, other):
    return (total ^ _round(np.uint64(0), other)) * _1 + _4


@kernel
def xxh64(address, size):
    """The XXH64 of `size` (int64) bytes at `address` (uint64)."""
    at, size = np.uint64(address), np.uint64(size)
    end = at + size
    if size >= _BLOCK:
        a, b, c, d = _1 + _2, _2, np.uint64(0), np.uint64(0) - _1
        for _ in range(size // np.uint64(_BLOCK)):
            a = _round(a, _u64(at))
            b = _round(b, _u64(at + np.uint64(8)))
            c = _round(c, _u64(at + np.uint64(16)))
            d = _round(d, _u64(at + np.uint64(24)))
            at += np.uint64(_BLOCK)
        total = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        total = _merge(_merge(_merge(_merge(total, a), b), c), d)
    else:
        total = _5
    total += size
    while at + np.uint64(8) <= end:
        total = _rotate(total ^ _round(np.uint64(0), _u64(at)), 27) * _1 + _4
        at += np.uint64(8)
    if at + np.uint64(4) <= end:
        total = _rotate(total ^ _u32(at) * _1, 23) * _2 + _3
        at += np.uint64(4)
    while at < end:
        total = _rotate(total ^ _u8(at) * _5, 11) * _1
        at += np.uint64(1)
    total = (total ^ total >> np.uint64(33)) * _2
    total = (total ^ total >> np.uint64(29)) * _3
    return total ^ total >> np.uint64(32)
