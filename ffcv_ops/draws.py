"""Every random number of the pipeline: a pure function of (seed, draw id, slot). There is no generator and no state.

A *draw id* names one showing of one image: `draw = (epoch * repeats + copy) * num_samples + index`, so that
`draw % num_samples` is the image and every epoch and every repeated-augmentation copy gets numbers of its own.
A *slot* names what the number is for, so adding a use never shifts the others. The hash is three rounds of the
SplitMix64 finaliser (Steele, Lea and Flood 2014; Stafford's mix 13).
"""

import math

import numpy as np

from ffcv_ops.compiled import kernel

# Slots of one sample. The ten attempts of RandomResizedCrop take four each.
CROP = 0
CROP_FALLBACK_FREE = 40
FLIP = 48
THREE_CHOICE = 49
THREE_SIGMA = 50
JITTER = 51
JITTER_ORDER = 54
# Slots of one mixing chunk (training/mixing.py), whose "draw id" is a chunk number.
MIX = 64
# Slots of the epoch order (order.py; of images and of pages), and of a stage's own seed.
ORDER = 96
STAGE = 97
PAGES = 98
# What is shown in place of an image that cannot be (order.py).
REPLACEMENT = 99
# RandAugment, AutoAugment, TrivialAugment: the choice for the sample, then eight slots for each operation in a row.
CHOICE = 128
LAYER = 136
LAYERS = 100  # the most there is room for
# Random erasing: whether, four for each of ten attempts, and the key of the noise.
ERASE = 1024
ERASE_TRY = 1025
ERASE_NOISE = 1065
# Stochastic depth (training/stochastic_depth.py): this slot and all above it, one for each step.
DEPTH = 1 << 16

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_UNIT = 2.0**-53


@kernel
def finalise(x):
    """SplitMix64's finaliser: uint64 -> uint64, a bijection whose output bits each depend on all input bits."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@kernel
def bits(seed, draw, slot):
    """64 uniform bits (uint64) for this seed, draw id and slot (integers)."""
    x = finalise(np.uint64(seed) + _GOLDEN)
    x = finalise(x + _GOLDEN * np.uint64(draw))
    return finalise(x + _GOLDEN * np.uint64(slot))


@kernel
def uniform(seed, draw, slot):
    """A float64 uniform on [0, 1): the top 53 of the 64 bits."""
    return np.float64(bits(seed, draw, slot) >> np.uint64(11)) * _UNIT


@kernel
def uniform_int(seed, draw, slot, n):
    """An integer uniform on {0, ..., n-1}; for n < 2**32 the bias is below 2**-21."""
    return np.int64(uniform(seed, draw, slot) * n)


@kernel
def normal(seed, draw, slot):
    """A float64 from N(0, 1), by Box and Muller's transform; takes this slot and the next one."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(seed, draw, slot)))
    return radius * math.cos(2.0 * math.pi * uniform(seed, draw, slot + 1))
