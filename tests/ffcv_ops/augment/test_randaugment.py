"""RandAugment's parameters and draws against timm's own parser and sampler (fixed seeds)."""

import math
import random

import numpy as np
import pytest
from scipy import stats
from timm.data.auto_augment import rand_augment_transform

from ffcv_ops.augment import operations
from ffcv_ops.augment.policies import randaugment
from ffcv_ops.augment.policies.randaugment import Strength
from ffcv_ops.errors import UserError
from ffcv_ops.rng import RandomKey

OFFICIAL = "rand-m9-mstd0.5-inc1"
HPARAMS = {"img_mean": (124, 116, 104), "interpolation": 3}
DRAWS = 15000


@pytest.mark.parametrize(
    "config",
    [OFFICIAL, "rand", "rand-m7-mstd0.5-inc1", "rand-m6-n3", "rand-n1-p0.75-inc1-m4", "rand-mstd101-m8",
     "rand-m15-mmax20-inc1", "rand-inc0-mstd1.25", "rand-p1-m0", "rand-mmax0"],
)  # fmt: skip
def test_strings_mean_what_they_mean_to_timm(config, timm_name):
    ours = randaugment.parse(config)
    theirs = rand_augment_transform(config, dict(HPARAMS))
    operation = theirs.ops[0]
    assert ours.layers == theirs.num_layers
    assert ours.probability == operation.prob
    assert ours.magnitude == operation.magnitude
    assert ours.deviation == operation.magnitude_std
    assert ours.limit == (operation.magnitude_max or 10.0)
    assert [timm_name(op, ours.scale) for op in range(15)] == [operation.name for operation in theirs.ops]


def test_the_official_string():
    assert randaugment.parse(OFFICIAL) == Strength(2, 0.5, 9.0, 0.5, 10.0, operations.INCREASING)


@pytest.mark.parametrize(
    "config, reason",
    [
        ("", "begin with rand"),
        ("randm9", "begin with rand"),
        ("augmix-m5", "begin with rand"),
        ("rand-", "'' is none of"),
        ("rand-x3", "'x3' is none of"),
        ("rand-m", "'m' is none of"),
        ("rand-m-9", "'m' is none of"),
        ("rand-mstdinf", "'mstdinf' is none of"),
        ("rand-tweights", "'tweights' is none of"),
        ("rand-m9-m8", "m is given twice"),
        ("rand-m9.5", "m must be a whole number"),
        ("rand-n0", "n must be 1 to"),
        ("rand-n1000", "n must be 1 to"),
        ("rand-p1.5", "p is a probability"),
        ("rand-inc2", "inc must be 0 or 1"),
    ],
)
def test_nonsense_is_refused(config, reason):
    with pytest.raises(UserError, match=reason):
        randaugment.parse(config)


def theirs_sampled(config, names):
    """timm's draws: for each sample the applied operations, as (our number, argument)."""
    transform = rand_augment_transform(config, dict(HPARAMS))
    applied = []
    for operation in transform.ops:
        number = names.index(operation.name)
        operation.aug_fn = lambda image, *arguments, number=number, **_: applied.append(
            (number, arguments[0] if arguments else 0.0)
        )
    np.random.seed(0)
    random.seed(0)
    lengths = []
    for _ in range(DRAWS):
        before = len(applied)
        transform(None)
        lengths.append(len(applied) - before)
    return np.array(applied), np.array(lengths)


def ours_sampled(strength):
    """The same from our draws. Size 1 x 1: translations in shares of the side, as timm's arguments are."""
    applied, lengths = [], []
    for draw in range(DRAWS):
        row = [randaugment.choose(strength, layer, 1, 1, RandomKey(3, draw)) for layer in range(strength.layers)]
        row = [(op, value) for op, value in row if op != operations.IDENTITY]
        applied += row
        lengths.append(len(row))
    return np.array(applied), np.array(lengths)


@pytest.mark.parametrize("config", [OFFICIAL, "rand-m6-n3-mstd101", "rand-m8-p0.8-mstd2.5-inc1"])
def test_choices_and_strengths_are_distributed_as_timms(config, timm_name):
    strength = randaugment.parse(config)
    ours, our_lengths = ours_sampled(strength)
    theirs, their_lengths = theirs_sampled(config, [timm_name(op, strength.scale) for op in range(15)])
    lengths = [np.bincount(x, minlength=strength.layers + 1) for x in (our_lengths, their_lengths)]
    assert stats.chi2_contingency(lengths).pvalue > 1e-3
    counts = [np.bincount(x[:, 0].astype(int), minlength=15) for x in (ours, theirs)]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    for op in range(15):
        values = [x[x[:, 0] == op, 1] for x in (ours, theirs)]
        assert stats.ks_2samp(*values).pvalue > 1e-4, operations.NAMES[op]


def test_layers_are_independent():
    strength = Strength(probability=1.0)
    pairs = np.array(
        [[randaugment.choose(strength, k, 1, 1, RandomKey(0, d))[0] for k in range(2)] for d in range(DRAWS)]
    )
    table = np.histogram2d(pairs[:, 0], pairs[:, 1], bins=[range(16)] * 2)[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


def test_magnitudes():
    official = randaugment.parse(OFFICIAL)
    values = np.array([randaugment.magnitude(official, RandomKey(0, d), 1) for d in range(DRAWS)])
    clipped = values == 10.0
    assert abs(clipped.mean() - stats.norm.sf(2)) < 4 * math.sqrt(stats.norm.sf(2) / DRAWS)
    below = stats.truncnorm(-18, 2, loc=9, scale=0.5)
    assert stats.kstest(values[~clipped], below.cdf).pvalue > 1e-3
    uniform = Strength(magnitude=6.0, deviation=math.inf)
    values = np.array([randaugment.magnitude(uniform, RandomKey(0, d), 0) for d in range(5000)])
    assert stats.kstest(values, stats.uniform(0, 6).cdf).pvalue > 1e-3
    assert randaugment.magnitude(Strength(magnitude=7.0), RandomKey(0, 0), 0) == 7.0
    assert randaugment.magnitude(Strength(magnitude=14.0), RandomKey(0, 0), 0) == 10.0
    assert randaugment.magnitude(Strength(magnitude=14.0, limit=20.0), RandomKey(0, 0), 0) == 14.0
