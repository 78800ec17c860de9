"""Random erasing (Zhong et al. 2017) as timm does it, on uint8 planes: the last step before the sample is written.

timm erases after normalisation: one box of 2 to 33 % of the area, aspect 0.3 to 1/0.3, set to 0 (const), to one normal
color (rand) or to N(0, 1) in each value (pixel, DeiT's choice). Here the same values are un-normalised,
255 (mean + std z), rounded to the nearest of 0..255 and clipped: the model sees z to within 0.009, and only what a
photograph could show (-2.1 to 2.6). The distribution of the rounded values is exact to 2**-16 a level.
"""

import math

import numpy as np

from ffcv_ops import rng
from ffcv_ops.augment.declare import augmentation, number, one_of
from ffcv_ops.compiled import kernel
from ffcv_ops.rng import RandomKey

CONST, RAND, PIXEL = 0, 1, 2

AREA = (0.02, 1.0 / 3.0)  # share of the image
ASPECT = (0.3, 1.0 / 0.3)  # height / width, log-uniform

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in 0..1


def _normal_values(mean, std):
    """uint8 [65536]: the rounded value of 255 (mean + std z) at each 16-bit quantile of z ~ N(0, 1)."""
    edges = ((np.arange(255) + 0.5) / 255 - mean) / std
    below = [0.5 * math.erfc(-z / math.sqrt(2.0)) for z in edges]
    return np.searchsorted(np.round(np.array(below) * 65536), np.arange(65536), side="right").astype(np.uint8)


_VALUES = np.stack([_normal_values(mean, std) for mean, std in zip(_MEAN, _STD, strict=True)])
_COLOR = np.array([round(255 * mean) for mean in _MEAN], np.uint8)


@kernel
def box(height, width, key):
    """(top, left, height, width) of the box; empty where ten tries found none that fits."""
    log_low, log_high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for attempt in range(10):
        stream = rng.ERASE_TRY + 4 * attempt
        area = (AREA[0] + (AREA[1] - AREA[0]) * rng.uniform(key, stream)) * (height * width)
        aspect = math.exp(log_low + (log_high - log_low) * rng.uniform(key, stream + 1))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top = rng.uniform_int(key, stream + 2, height - h + 1)
            return top, rng.uniform_int(key, stream + 3, width - w + 1), h, w
    return 0, 0, 0, 0


@augmentation(
    probability=number("probability", default=0.25, low=0, high=1),
    mode=one_of("erase with the mean color, one random color, or noise", "const", "rand", "pixel", default="pixel"),
    examples=("erase(1, const)", "erase(1, rand)", "erase(1, pixel)"),
)
def erase(planes, options, key, scratch):
    """Random erasing: a box of 2 to 33 % of the image is gone."""
    if rng.uniform(key, rng.ERASE) >= options.probability:
        return
    _, height, width = planes.shape
    mode = options.mode
    top, left, h, w = box(height, width, key)
    noise_seed = rng.bits(key, rng.ERASE_NOISE)
    noise = rng.bits(RandomKey(noise_seed, 0), 0)
    for y in range(top, top + h):
        for x in range(left, left + w):
            if mode == PIXEL:
                noise = rng.bits(RandomKey(noise_seed, y * width + x), 0)
            for c in range(3):
                quantile = noise >> np.uint64(16 * c) & np.uint64(0xFFFF)
                planes[c, y, x] = _COLOR[c] if mode == CONST else _VALUES[c, quantile]
