"""XXH64 against the `xxhash` package, which wraps the reference implementation."""

import numpy as np
import pytest
import xxhash

from ffcv_ops.storage.checksum import xxh64

DATA = np.random.default_rng(0).integers(0, 256, 1_000_003, dtype=np.uint8)


def ours(part: np.ndarray) -> int:
    return int(xxh64(np.uint64(part.ctypes.data), np.int64(len(part))))


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_all_short_lengths(offset):
    for length in range(201):
        part = DATA[offset : offset + length]
        assert ours(part) == xxhash.xxh64_intdigest(part.tobytes()), length


def test_long_ones():
    for length in (4095, 65_536, 99_999, len(DATA)):
        assert ours(DATA[:length]) == xxhash.xxh64_intdigest(DATA[:length].tobytes())


def test_every_bit_counts():
    part = DATA[:77].copy()
    sums = {ours(part)}
    for bit in range(8 * len(part)):
        part[bit // 8] ^= 1 << bit % 8
        sums.add(ours(part))
        part[bit // 8] ^= 1 << bit % 8
    assert len(sums) == 8 * len(part) + 1
