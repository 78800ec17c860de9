"""A counter-based random number generator: every number is a pure function of (key, stream). There is no state.

A *key* is a seed and a sample id. The sample id names one view of one image, `(epoch * repeats + copy) * num_samples +
index`: `sample_id % num_samples` is the image, and every epoch and every copy of repeated augmentation has numbers of
its own. A *stream* names what the number is for, so adding a use never shifts the others. The hash is three rounds of
the SplitMix64 finalizer (Steele, Lea and Flood 2014; Stafford's mix 13).
"""

import math
from typing import NamedTuple

import numpy as np

from ffcv_ops.compiled import kernel

# Streams of one sample. The ten attempts of RandomResizedCrop take four each.
CROP = 0
FLIP = 48
THREE_CHOICE = 49
THREE_SIGMA = 50
JITTER = 51
JITTER_ORDER = 54
GRAY = 55
SOLARIZE = 56
BLUR = 57  # whether, then how much
# Streams of one mixing chunk (mixing.py), whose sample id is a chunk number.
MIX = 64
# Streams of the epoch order (order.py; of images and of pages), and of a stage's own seed.
ORDER = 96
STAGE = 97
PAGES = 98
BALANCED = 100
# What is shown in place of an image that cannot be (order.py).
REPLACEMENT = 99
# RandAugment, AutoAugment, TrivialAugment: the choice for the sample, then eight streams for each operation in a row.
CHOICE = 128
LAYER = 136
LAYERS = 100  # the most there is room for
# Random erasing: whether, four for each of ten attempts, and the key of the noise.
ERASE = 1024
ERASE_TRY = 1025
ERASE_NOISE = 1065
# A user's own augmentations (augment/chain.py): one for each place in a chain, from which a key of its own is made.
OWN = 2048
# Stochastic depth (training/network/stochastic_depth.py): this stream and all above it, one for each step.
DEPTH = 1 << 16

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_UNIT = 2.0**-53


class RandomKey(NamedTuple):
    """What makes the numbers of one sample its own: two integers."""

    seed: int
    sample_id: int


@kernel
def finalize(x):
    """SplitMix64's finalizer: uint64 -> uint64, a bijection whose output bits each depend on all input bits."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@kernel
def bits(key, stream):
    """64 uniform bits (uint64) for this RandomKey and stream (an integer)."""
    x = finalize(np.uint64(key.seed) + _GOLDEN)
    x = finalize(x + _GOLDEN * np.uint64(key.sample_id))
    return finalize(x + _GOLDEN * np.uint64(stream))


@kernel
def uniform(key, stream):
    """A float64 uniform on [0, 1): the top 53 of the 64 bits."""
    return np.float64(bits(key, stream) >> np.uint64(11)) * _UNIT


@kernel
def uniform_int(key, stream, n):
    """An integer uniform on {0, ..., n-1}; for n < 2**32 the bias is below 2**-21."""
    return np.int64(uniform(key, stream) * n)


@kernel
def normal(key, stream):
    """A float64 from N(0, 1), by Box and Muller's transform; takes this stream and the next one."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(key, stream)))
    return radius * math.cos(2.0 * math.pi * uniform(key, stream + 1))
