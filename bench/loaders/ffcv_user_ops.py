"""3-Augment and ColorJitter as a user of stock FFCV would write them: one operation after the other over the batch.

The baseline of our one pass: a parallel loop over the samples as in FFCV's own operations, plain loops over rows,
columns and channels, a separable blur. FFCV's RandomBrightness and its kin are not used: they build whole arrays of
float64 and are about three times slower than these loops, and they cannot be run in random order. uint8 [batch, height,
width, 3] in and out, in place.

The simple random crop is a decoder of FFCV's own kind with another window: a square as long as the short side, drawn
along the long side, then resized. The 4 reflected border pixels of the paper's crop, which FFCV's resize cannot make,
are left out: that is less work, and so in this baseline's favor.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from ffcv.fields.rgb_image import ResizedCropRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from numba import njit

MOST_TAPS = 13  # of the blur: 3 sigma on either side, sigma up to 2
compiled = njit(nogil=True, fastmath=True, error_model="numpy")  # as FFCV compiles its own


def get_simple_random_crop(height, width, _, ratio):
    side = min(height, width)
    top = int(np.random.uniform(0, height - side + 1))
    left = int(np.random.uniform(0, width - side + 1))
    return top, left, side, side


class SimpleRandomCropRGBImageDecoder(ResizedCropRGBImageDecoder):
    scale = ratio = None

    @property
    def get_crop_generator(self):
        return get_simple_random_crop


@compiled
def luma(pixel):
    """Pillow's integer luma of 3 values, 0 to 255."""
    return (19595 * np.int32(pixel[0]) + 38470 * np.int32(pixel[1]) + 7471 * np.int32(pixel[2]) + 32768) >> 16


@compiled
def to_byte(value):
    return np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@compiled
def grayscale(image):
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = luma(image[y, x])
            image[y, x, 0] = image[y, x, 1] = image[y, x, 2] = gray


@compiled
def solarize(image):
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                if image[y, x, c] >= 128:
                    image[y, x, c] = 255 - image[y, x, c]


@compiled
def gaussian_weights(sigma):
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    return radius, weights / weights.sum()


@compiled
def gaussian_blur(image, sigma, scratch):
    """`scratch`: float32, at least [height, width, 3]. The border is repeated outwards."""
    height, width, _ = image.shape
    radius, weights = gaussian_weights(sigma)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                total = np.float32(0)
                for k in range(-radius, radius + 1):
                    total += weights[k + radius] * image[y, min(max(x + k, 0), width - 1), c]
                scratch[y, x, c] = total
    for y in range(height):
        for x in range(width):
            for c in range(3):
                total = np.float32(0.5)
                for k in range(-radius, radius + 1):
                    total += weights[k + radius] * scratch[min(max(y + k, 0), height - 1), x, c]
                image[y, x, c] = np.uint8(total)


@compiled
def brightness(image, factor):
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                image[y, x, c] = to_byte(factor * image[y, x, c])


@compiled
def contrast(image, factor):
    total = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += luma(image[y, x])
    mean = np.float32(int(total / (image.shape[0] * image.shape[1]) + 0.5))
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                image[y, x, c] = to_byte(mean + factor * (image[y, x, c] - mean))


@compiled
def saturation(image, factor):
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = np.float32(luma(image[y, x]))
            for c in range(3):
                image[y, x, c] = to_byte(gray + factor * (image[y, x, c] - gray))


class Kernels(NamedTuple):
    """What happens to one image, in place."""

    grayscale: Any  # (image)
    solarize: Any  # (image)
    gaussian_blur: Any  # (image, sigma, scratch)
    brightness: Any  # (image, factor)
    contrast: Any
    saturation: Any


STRAIGHTFORWARD = Kernels(grayscale, solarize, gaussian_blur, brightness, contrast, saturation)


class ThreeAugment(Operation):
    """Exactly one of grayscale, solarize and Gaussian blur (sigma 0.1 to 2) for each sample."""

    def __init__(self, kernels=STRAIGHTFORWARD):
        super().__init__()
        self.kernels = kernels

    def generate_code(self):
        my_range = Compiler.get_iterator()
        grayscale, solarize, gaussian_blur = self.kernels[:3]

        def three_augment(images, scratch):
            choices = np.random.randint(0, 3, len(images))
            sigmas = np.random.uniform(0.1, 2.0, len(images))
            for i in my_range(len(images)):
                if choices[i] == 0:
                    grayscale(images[i])
                elif choices[i] == 1:
                    solarize(images[i])
                else:
                    gaussian_blur(images[i], sigmas[i], scratch[i])
            return images

        three_augment.is_parallel = True
        return three_augment

    def declare_state_and_memory(self, previous_state):
        height, width, _ = previous_state.shape
        scratch = AllocationQuery((height + 1, width + MOST_TAPS - 1, 3), np.dtype("f4"))
        return replace(previous_state, jit_mode=True), scratch


class ColorJitter(Operation):
    """Brightness, contrast and saturation, each times 1 - amount to 1 + amount, in random order."""

    def __init__(self, amount, kernels=STRAIGHTFORWARD):
        super().__init__()
        self.amount, self.kernels = amount, kernels

    def generate_code(self):
        my_range, amount = Compiler.get_iterator(), self.amount
        brightness, contrast, saturation = self.kernels[3:]

        def color_jitter(images, _):
            factors = np.random.uniform(1 - amount, 1 + amount, (len(images), 3)).astype(np.float32)
            keys = np.random.rand(len(images), 3)
            for i in my_range(len(images)):
                for which in np.argsort(keys[i]):
                    if which == 0:
                        brightness(images[i], factors[i, 0])
                    elif which == 1:
                        contrast(images[i], factors[i, 1])
                    else:
                        saturation(images[i], factors[i, 2])
            return images

        color_jitter.is_parallel = True
        return color_jitter

    def declare_state_and_memory(self, previous_state):
        return replace(previous_state, jit_mode=True), None
