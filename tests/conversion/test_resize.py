"""The resampler against Pillow's, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from conversion.resize import resize


def ours(rgb, box, size):
    height, width, _ = rgb.shape
    pixels = np.full((height + 16) * width + 16, 0x12345678, np.uint32)
    pixels[: height * width].view(np.uint8).reshape(height, width, 4)[..., :3] = rgb
    out = np.zeros((*size, 3), np.uint8)
    resize(pixels, height, width, float(box[0]), float(box[1]), out)
    return out


@pytest.mark.timeout(120)
def test_equals_pillow(pillow_resize):
    rng = np.random.default_rng(0)
    for number in range(150):
        height, width = rng.integers(1, 300, 2)
        size = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        box = height - (number % 2) / 2, width - (number % 3) / 4
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = pillow_resize(Image.fromarray(rgb), size[::-1], box=(0, 0, box[1], box[0]))
        assert np.array_equal(ours(rgb, box, size), np.asarray(expected)), (rgb.shape, box, size)
