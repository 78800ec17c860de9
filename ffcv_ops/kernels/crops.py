"""The distributions of the crops: draws -> which part of the image is seen. Pure arithmetic on sizes, no pixels.

All three are one thing, a `View`: a box of the source image is resized to full_height x full_width, and an
S x S window at (top, left) of the result is kept. The window may overhang the resized image (SRC's padding); what
lies outside is mirrored. RandomResizedCrop: the box is random and the window is everything. SRC and the center
crop: the box is the whole image and the window is placed.
"""

import math
from typing import NamedTuple

from ffcv_ops import rng
from ffcv_ops.compiled import kernel

RRC, SRC, CENTER = 0, 1, 2
NAMES = {"rrc": RRC, "src": SRC, "center": CENTER}

SRC_PADDING = 4  # pixels, at every resolution (official code, augment.py)
RATIO = (3.0 / 4.0, 4.0 / 3.0)  # aspect ratios of RandomResizedCrop


class View(NamedTuple):
    """Integers, in pixels. box_*: source region that is resized. full_*: its size after. top, left: the window."""

    box_top: int
    box_left: int
    box_height: int
    box_width: int
    full_height: int
    full_width: int
    top: int
    left: int


@kernel
def random_resized_crop(height, width, size, scale_low, scale_high, key):
    """torchvision's and timm's distribution: ten tries of area ~ U(scale) and log-uniform aspect in `RATIO`.

    Where none of them fits: the largest centered box whose aspect lies in `RATIO`.
    """
    area = height * width
    log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
    for attempt in range(10):
        stream = rng.CROP + 4 * attempt
        target = area * (scale_low + (scale_high - scale_low) * rng.uniform(key, stream))
        aspect = math.exp(log_low + (log_high - log_low) * rng.uniform(key, stream + 1))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = rng.uniform_int(key, stream + 2, height - h + 1)
            left = rng.uniform_int(key, stream + 3, width - w + 1)
            return View(top, left, h, w, size, size, 0, 0)
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return View((height - h) // 2, (width - w) // 2, h, w, size, size, 0, 0)


@kernel
def _resized(height, width, shortest):
    """Size after the shortest side is resized to `shortest` (torchvision: the longer one is truncated)."""
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)


@kernel
def simple_random_crop(height, width, size, key):
    """The paper's SRC: shortest side to `size`, 4 pixels of mirrored padding, a uniform size x size window."""
    full_height, full_width = _resized(height, width, size)
    top = rng.uniform_int(key, rng.CROP, full_height + 2 * SRC_PADDING - size + 1) - SRC_PADDING
    left = rng.uniform_int(key, rng.CROP + 1, full_width + 2 * SRC_PADDING - size + 1) - SRC_PADDING
    return View(0, 0, height, width, full_height, full_width, top, left)


@kernel
def center_crop(height, width, size, ratio):
    """Evaluation: shortest side to int(size / ratio), then the size x size center (torchvision's rounding)."""
    full_height, full_width = _resized(height, width, int(size / ratio))
    top = round((full_height - size) / 2.0)
    left = round((full_width - size) / 2.0)
    return View(0, 0, height, width, full_height, full_width, top, left)


@kernel
def locate(crop, height, width, size, scale_low, scale_high, ratio, key):
    """The `View` of an image of height x width under the mode `crop` (RRC, SRC or CENTER)."""
    if crop == RRC:
        return random_resized_crop(height, width, size, scale_low, scale_high, key)
    if crop == SRC:
        return simple_random_crop(height, width, size, key)
    return center_crop(height, width, size, ratio)
