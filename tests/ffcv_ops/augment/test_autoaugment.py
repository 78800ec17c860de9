"""AutoAugment's tables against timm's, and the draws from them."""

import numpy as np
import pytest
from scipy import stats
from timm.data.auto_augment import auto_augment_policy

from ffcv_ops import rng
from ffcv_ops.augment import operations
from ffcv_ops.augment.policies import autoaugment
from ffcv_ops.rng import RandomKey

NAMES = {autoaugment.ORIGINAL: "original", autoaugment.V0: "v0"}
LAWS = {autoaugment.ORIGINAL: operations.PAPER, autoaugment.V0: operations.PLAIN}


@pytest.mark.parametrize("policy", NAMES)
def test_tables_are_timms(policy, timm_name):
    theirs = [[(op.name, op.prob, op.magnitude) for op in pair] for pair in auto_augment_policy(NAMES[policy])]
    table = autoaugment.POLICIES[policy]
    ours = [[(timm_name(int(op), LAWS[policy]), p, m) for op, p, m in pair] for pair in table]
    assert ours == theirs


@pytest.mark.parametrize("policy", NAMES)
def test_pairs_are_uniform_and_operations_have_their_probabilities(policy):
    """25 pairs; an operation of probability 0.6 runs in six of ten samples that drew its pair."""
    applied = np.zeros((25, 2))
    counts = np.zeros(25)
    for draw in range(20000):
        pair = rng.uniform_int(RandomKey(1, draw), rng.CHOICE, 25)
        counts[pair] += 1
        for layer in range(2):
            op, _ = autoaugment.choose(policy, layer, 1, 1, RandomKey(1, draw))
            assert op in (operations.IDENTITY, int(autoaugment.POLICIES[policy, pair, layer, 0]))
            applied[pair, layer] += op != operations.IDENTITY
    assert stats.chisquare(counts).pvalue > 1e-3
    expected = autoaugment.POLICIES[policy, :, :, 1] * counts[:, None]
    spread = np.sqrt(expected * (1 - autoaugment.POLICIES[policy, :, :, 1]))
    assert (np.abs(applied - expected) <= 4.5 * spread).all()


def test_directions_are_even():
    """v0's certain rotation (pair 15, magnitude 7): 21 degrees either way, equally often."""
    angles = [
        autoaugment.choose(autoaugment.V0, 0, 1, 1, RandomKey(2, d))[1]
        for d in range(40000)
        if rng.uniform_int(RandomKey(2, d), rng.CHOICE, 25) == 15
    ]
    assert set(angles) == {21.0, -21.0}
    assert stats.binomtest(angles.count(21.0), len(angles)).pvalue > 1e-3
