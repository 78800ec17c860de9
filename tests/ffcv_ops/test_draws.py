"""The draws against SciPy's tests of uniformity and a plain-integer transcription of the hash."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ffcv_ops import draws

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalise(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def bits(seed, draw, slot):
    x = finalise((seed + GOLDEN) & MASK)
    x = finalise((x + GOLDEN * draw) & MASK)
    return finalise((x + GOLDEN * slot) & MASK)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**50), st.integers(0, 200))
def test_bits_equal_a_transcription_in_plain_integers(seed, draw, slot):
    assert int(draws.bits(seed, draw, slot)) == bits(seed, draw, slot)
    assert draws.uniform(seed, draw, slot) == (bits(seed, draw, slot) >> 11) / 2**53


def test_splitmix_known_answer():
    """The first outputs of SplitMix64 with state 1234567, as published with its reference implementation."""
    states = [(1234567 + GOLDEN * (k + 1)) & MASK for k in range(3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(draws.finalise(np.uint64(s))) for s in states] == expected


@pytest.mark.parametrize("along", ["seed", "draw", "slot"])
def test_uniform_along_every_argument(along):
    n = 20000
    arguments = {"seed": [3] * n, "draw": [5] * n, "slot": [7] * n, along: range(n)}
    values = np.array([draws.uniform(*a) for a in zip(*arguments.values(), strict=True)])
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    lag = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(lag) < 4 / np.sqrt(n)
    assert len(np.unique(values)) == n


def test_uniform_int_covers_its_range_evenly():
    counts = np.bincount([draws.uniform_int(1, d, 2, 7) for d in range(70000)], minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_normal():
    values = np.array([draws.normal(1, d, 4) for d in range(20000)])
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(20000)


def test_slots_do_not_overlap():
    """Each use has numbers of its own: the slots of a sample are distinct."""
    used = [draws.CROP + k for k in range(40)]
    used += [draws.FLIP, draws.THREE_CHOICE, draws.THREE_SIGMA, *(draws.JITTER + k for k in range(3))]
    used += [draws.JITTER_ORDER]
    assert max(used) < draws.MIX < draws.ORDER < draws.STAGE < draws.CHOICE
    used += [draws.CHOICE, *(draws.LAYER + 8 * layer + k for layer in range(draws.LAYERS) for k in range(8))]
    used += [draws.ERASE, *(draws.ERASE_TRY + k for k in range(40)), draws.ERASE_NOISE]
    assert len(set(used)) == len(used)
    assert max(used) < draws.DEPTH
