"""The JPEG decoder against Pillow, which brings its own libjpeg-turbo: equal; and against damaged streams."""

import io

import numpy as np
import pytest
from numba import njit
from PIL import Image

from ffcv_ops import jpeg


@njit
def run(data, size, height, width, pixels):
    decoder = jpeg.open_decoder()
    status = jpeg.decode(decoder, data.ctypes.data, size, height, width, pixels, np.empty(4, np.int32))
    jpeg.close_decoder(decoder)
    return status


def decoded(stream, height, width):
    pixels = np.zeros(height * width, np.uint32)
    data = np.frombuffer(stream, np.uint8)
    status = run(data, data.size, height, width, pixels)
    return status, pixels.view(np.uint8).reshape(height, width, 4)[..., :3]


@pytest.mark.parametrize("quality", [30, 75, 90, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_equal_to_pillow(photos, odd_images, encode, quality, subsampling, progressive):
    for image in [*photos.values(), *odd_images.values()]:
        stream = encode(image, quality=quality, subsampling=subsampling, progressive=progressive)
        status, ours = decoded(stream, *image.shape[:2])
        assert status == jpeg.OK
        np.testing.assert_array_equal(ours, np.asarray(Image.open(io.BytesIO(stream)).convert("RGB")))


def test_grayscale_jpeg(photos, encode):
    image = photos["cat"][..., 0]
    status, ours = decoded(encode(image, quality=90), *image.shape)
    assert status == jpeg.OK
    np.testing.assert_array_equal(ours[..., 2], np.asarray(Image.open(io.BytesIO(encode(image, quality=90)))))


def test_damage_is_reported(photos, encode):
    image = photos["cat"]
    stream = encode(image, quality=90)
    size = image.shape[:2]
    assert decoded(stream[: len(stream) // 2], *size)[0] == jpeg.CORRUPT
    assert decoded(b"\0\0" + stream[2:], *size)[0] == jpeg.CORRUPT
    assert decoded(stream, size[0] + 1, size[1])[0] == jpeg.CORRUPT
    assert decoded(stream, size[0], size[1] - 1)[0] == jpeg.CORRUPT
    assert decoded(b"", *size)[0] == jpeg.CORRUPT
    assert decoded(stream, *size)[0] == jpeg.OK
