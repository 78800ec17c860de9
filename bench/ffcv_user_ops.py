"""3-Augment and ColorJitter as a user of stock FFCV would write them: one operation after the other over the batch.

The peer of our one pass, meant to be good Numba: a parallel loop over samples, separable blur in contiguous float32
rows that vectorise, one pass per jitter operation. uint8 [batch, height, width, 3] in and out, in place.

The simple random crop is a decoder of FFCV's own kind with another window: a square as long as the short side, drawn
along the long side, then resized. The 4 reflected border pixels of the paper's crop, which FFCV's resize cannot make,
are left out: that is less work, and so in this peer's favour.
"""

from dataclasses import replace

import numpy as np
from ffcv.fields.rgb_image import ResizedCropRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from numba import njit

MOST_TAPS = 13  # 3 sigma on either side, sigma up to 2
inline = njit(nogil=True, fastmath=True, error_model="numpy")


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


@inline
def luma(red, green, blue):
    """Pillow's integer luma, 0 to 255."""
    return (19595 * np.int32(red) + 38470 * np.int32(green) + 7471 * np.int32(blue) + 32768) >> 16


@inline
def grayscale(image):
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = luma(image[y, x, 0], image[y, x, 1], image[y, x, 2])
            image[y, x, 0] = image[y, x, 1] = image[y, x, 2] = gray


@inline
def solarize(image):
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = values[i] if values[i] < 128 else 255 - values[i]


@inline
def gaussian_blur(image, sigma, rows):
    """`rows`: float32 [height + 1, (width + 12) * 3], scratch."""
    height, width, _ = image.shape
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    flat, row = image.reshape(height, 3 * width), rows[height]
    for y in range(height):
        rows[y, : 3 * width] = 0
        for k in range(2 * radius + 1):
            source, weight = flat[min(max(y + k - radius, 0), height - 1)], weights[k]
            for i in range(3 * width):
                rows[y, i] += weight * source[i]
    for y in range(height):
        for k in range(radius):
            for c in range(3):
                row[3 * k + c] = rows[y, c]
                row[3 * (radius + width + k) + c] = rows[y, 3 * (width - 1) + c]
        row[3 * radius : 3 * (radius + width)] = rows[y, : 3 * width]
        rows[y, : 3 * width] = 0.5
        for k in range(2 * radius + 1):
            weight, shift = weights[k], 3 * k
            for i in range(3 * width):
                rows[y, i] += weight * row[shift + i]
        for i in range(3 * width):
            flat[y, i] = np.uint8(rows[y, i])


@inline
def to_byte(value):
    return np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@inline
def brightness(image, factor):
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = to_byte(factor * values[i])


@inline
def contrast(image, factor):
    total = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += luma(image[y, x, 0], image[y, x, 1], image[y, x, 2])
    offset = (np.float32(1) - factor) * np.float32(int(total / (image.shape[0] * image.shape[1]) + 0.5))
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = to_byte(factor * values[i] + offset)


@inline
def saturation(image, factor):
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = luma(image[y, x, 0], image[y, x, 1], image[y, x, 2])
            offset = (np.float32(1) - factor) * np.float32(gray)
            for c in range(3):
                image[y, x, c] = to_byte(factor * image[y, x, c] + offset)


class ThreeAugment(Operation):
    """Exactly one of grayscale, solarize and Gaussian blur (sigma 0.1 to 2) for each sample."""

    def generate_code(self):
        my_range = Compiler.get_iterator()

        def three_augment(images, rows):
            choices = np.random.randint(0, 3, len(images))
            sigmas = np.random.uniform(0.1, 2.0, len(images))
            for i in my_range(len(images)):
                if choices[i] == 0:
                    grayscale(images[i])
                elif choices[i] == 1:
                    solarize(images[i])
                else:
                    gaussian_blur(images[i], sigmas[i], rows[i])
            return images

        three_augment.is_parallel = True
        return three_augment

    def declare_state_and_memory(self, previous_state):
        height, width, _ = previous_state.shape
        scratch = (height + 1, 3 * (width + MOST_TAPS - 1))
        return replace(previous_state, jit_mode=True), AllocationQuery(scratch, np.dtype("f4"))


class ColorJitter(Operation):
    """Brightness, contrast and saturation, each times 1 - amount to 1 + amount, in random order."""

    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def generate_code(self):
        my_range, amount = Compiler.get_iterator(), self.amount

        def color_jitter(images, _):
            factors = np.random.uniform(1 - amount, 1 + amount, (len(images), 3)).astype(np.float32)
            orders = np.random.rand(len(images), 3)
            for i in my_range(len(images)):
                for which in np.argsort(orders[i]):
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
