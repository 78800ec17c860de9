"""AutoAugment for ImageNet in timm's reading: one of 25 pairs of operations, each operation with its own probability.

`original`: the policy of the paper (Cubuk et al. 2018, appendix, ImageNet), whose posterize keeps 4 to 8 bits. `v0`:
the policy of the EfficientNet code on TPUs, whose posterize keeps 0 to 4 bits and whose translation is relative.
Magnitudes are fixed; the direction of rotations, shears and translations is drawn.
"""

import numpy as np

from ffcv_ops import rng
from ffcv_ops.augment import operations
from ffcv_ops.augment.declare import augmentation
from ffcv_ops.augment.from_timm import of_timm
from ffcv_ops.compiled import kernel

ORIGINAL, V0 = 0, 1
LAYERS = 2

# operation, probability, magnitude; one pair a line
_ORIGINAL = """
posterize .4 8     rotate .6 9
solarize .6 5      autocontrast .6 5
equalize .8 8      equalize .6 3
posterize .6 7     posterize .6 6
equalize .4 7      solarize .2 4
equalize .4 4      rotate .8 8
solarize .6 3      equalize .6 7
posterize .8 5     equalize 1 2
rotate .2 3        solarize .6 8
equalize .6 8      posterize .4 6
rotate .8 8        color .4 0
rotate .4 9        equalize .6 2
equalize 0 7       equalize .8 8
invert .6 4        equalize 1 8
color .6 4         contrast 1 8
rotate .8 8        color 1 2
color .8 8         solarize .8 7
sharpness .4 7     invert .6 8
shear_x .6 5       equalize 1 9
color .4 0         equalize .6 3
equalize .4 7      solarize .2 4
solarize .6 5      autocontrast .6 5
invert .6 4        equalize 1 8
color .6 4         contrast 1 8
equalize .8 8      equalize .6 3
"""
_V0 = """
equalize .8 1      shear_y .8 4
color .4 9         equalize .6 3
color .4 1         rotate .6 8
solarize .8 3      equalize .4 7
solarize .4 2      solarize .6 2
color .2 0         equalize .8 8
equalize .4 8      solarize_add .8 3
shear_x .2 9       rotate .6 8
color .6 1         equalize 1 2
invert .4 9        rotate .6 0
equalize 1 9       shear_y .6 3
color .4 7         equalize .6 0
posterize .4 6     autocontrast .4 7
solarize .6 8      color .6 9
solarize .2 4      rotate .8 9
rotate 1 7         translate_y .8 9
shear_x 0 0        solarize .8 4
shear_y .8 0       color .6 4
color 1 0          rotate .6 2
equalize .8 4      equalize 0 8
equalize 1 4       autocontrast .6 2
shear_y .4 7       solarize_add .6 7
posterize .8 2     solarize .6 10
solarize .6 8      equalize .6 1
color .8 6         rotate .4 5
"""


def _table(text):
    """float64 [25, 2, 3]: operation, probability, magnitude."""
    words = text.split()
    words[::3] = [operations.NAMES.index(name) for name in words[::3]]
    return np.array(words, np.float64).reshape(-1, LAYERS, 3)


POLICIES = np.stack([_table(_ORIGINAL), _table(_V0)])


@kernel
def choose(policy, layer, height, width, key):
    """The operation of this layer (0 or 1) and its argument; IDENTITY where it is skipped."""
    pair = rng.uniform_int(key, rng.CHOICE, POLICIES.shape[1])
    row = POLICIES[policy, pair, layer]
    stream = rng.LAYER + 8 * layer
    if rng.uniform(key, stream + 1) >= row[1]:
        return operations.IDENTITY, 0.0
    op = int(row[0])
    scale = operations.PAPER if policy == ORIGINAL else operations.PLAIN
    negative = rng.uniform(key, stream + 4) < 0.5
    return op, operations.argument(op, scale, row[2], negative, height, width)


@kernel
def _run(planes, policy, interpolation, key, scratch):
    _, height, width = planes.shape
    for layer in range(LAYERS):
        op, value = choose(policy, layer, height, width, key)
        operations.run(planes, op, value, interpolation, operations.MEAN_COLOR, scratch)


def _of(policy):
    """What both policies declare."""
    return of_timm(lambda options, *sample: [choose(policy, layer, *sample) for layer in range(LAYERS)])


@augmentation("auto-original", **_of(ORIGINAL))
def auto_original(planes, options, key, scratch):
    """AutoAugment, the paper's policy for ImageNet."""
    _run(planes, ORIGINAL, options.interpolation, key, scratch)


@augmentation("auto-v0", **_of(V0))
def auto_v0(planes, options, key, scratch):
    """AutoAugment, the policy of EfficientNet's code."""
    _run(planes, V0, options.interpolation, key, scratch)
