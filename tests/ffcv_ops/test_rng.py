"""The random numbers against SciPy's tests of uniformity and a plain-integer transcription of the hash."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ffcv_ops import rng
from ffcv_ops.rng import RandomKey

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalize(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def bits(seed, sample_id, stream):
    x = finalize((seed + GOLDEN) & MASK)
    x = finalize((x + GOLDEN * sample_id) & MASK)
    return finalize((x + GOLDEN * stream) & MASK)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**50), st.integers(0, 200))
def test_bits_equal_a_transcription_in_plain_integers(seed, sample_id, stream):
    assert int(rng.bits(RandomKey(seed, sample_id), stream)) == bits(seed, sample_id, stream)
    assert rng.uniform(RandomKey(seed, sample_id), stream) == (bits(seed, sample_id, stream) >> 11) / 2**53


def test_splitmix_known_answer():
    """The first outputs of SplitMix64 with state 1234567, as published with its reference implementation."""
    states = [(1234567 + GOLDEN * (k + 1)) & MASK for k in range(3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(rng.finalize(np.uint64(s))) for s in states] == expected


@pytest.mark.parametrize("along", ["seed", "sample_id", "stream"])
def test_uniform_along_every_argument(along):
    n = 20000
    arguments = {"seed": [3] * n, "sample_id": [5] * n, "stream": [7] * n, along: range(n)}
    values = np.array([rng.uniform(RandomKey(s, i), k) for s, i, k in zip(*arguments.values(), strict=True)])
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    lag = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(lag) < 4 / np.sqrt(n)
    assert len(np.unique(values)) == n


def test_uniform_int_covers_its_range_evenly():
    counts = np.bincount([rng.uniform_int(RandomKey(1, d), 2, 7) for d in range(70000)], minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_normal():
    values = np.array([rng.normal(RandomKey(1, d), 4) for d in range(20000)])
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(20000)


def test_streams_do_not_overlap():
    """Each use has numbers of its own: the streams of a sample are distinct."""
    used = [rng.CROP + k for k in range(40)]
    used += [rng.FLIP, rng.THREE_CHOICE, rng.THREE_SIGMA, *(rng.JITTER + k for k in range(3))]
    used += [rng.JITTER_ORDER]
    assert max(used) < rng.MIX < rng.ORDER < rng.STAGE < rng.CHOICE
    used += [rng.CHOICE, *(rng.LAYER + 8 * layer + k for layer in range(rng.LAYERS) for k in range(8))]
    used += [rng.ERASE, *(rng.ERASE_TRY + k for k in range(40)), rng.ERASE_NOISE]
    assert len(set(used)) == len(used)
    assert max(used) < rng.DEPTH
