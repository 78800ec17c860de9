"""The same operations by somebody who knows how Numba vectorises: all loops run over contiguous values.

Nobody ships this for FFCV. It is here to tell two things apart: how much of the difference to stock FFCV comes from
plainly written operations, and how much from decoding, resizing and one pass over the sample.
"""

import numpy as np

from bench.loaders.ffcv_user_ops import Kernels, compiled, gaussian_weights, grayscale, luma, saturation, to_byte


@compiled
def solarize(image):
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = values[i] if values[i] < 128 else 255 - values[i]


@compiled
def gaussian_blur(image, sigma, scratch):
    """`scratch`: float32 [height + 1, width + at least 2 radii, 3]; its last row is one padded row of the image."""
    height, width, _ = image.shape
    radius, weights = gaussian_weights(sigma)
    flat, rows = image.reshape(height, 3 * width), scratch.reshape(height + 1, 3 * scratch.shape[1])
    padded = rows[height]
    for y in range(height):
        rows[y, : 3 * width] = 0
        for k in range(2 * radius + 1):
            source, weight = flat[min(max(y + k - radius, 0), height - 1)], weights[k]
            for i in range(3 * width):
                rows[y, i] += weight * source[i]
    for y in range(height):
        for k in range(radius):
            for c in range(3):
                padded[3 * k + c] = rows[y, c]
                padded[3 * (radius + width + k) + c] = rows[y, 3 * (width - 1) + c]
        padded[3 * radius : 3 * (radius + width)] = rows[y, : 3 * width]
        rows[y, : 3 * width] = 0.5
        for k in range(2 * radius + 1):
            weight, shift = weights[k], 3 * k
            for i in range(3 * width):
                rows[y, i] += weight * padded[shift + i]
        for i in range(3 * width):
            flat[y, i] = np.uint8(rows[y, i])


@compiled
def brightness(image, factor):
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = to_byte(factor * values[i])


@compiled
def contrast(image, factor):
    total = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += luma(image[y, x])
    offset = (np.float32(1) - factor) * np.float32(int(total / (image.shape[0] * image.shape[1]) + 0.5))
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = to_byte(factor * values[i] + offset)


TUNED = Kernels(grayscale, solarize, gaussian_blur, brightness, contrast, saturation)
