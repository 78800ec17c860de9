"""The resampler against Pillow's resize: bit for bit, for crops, fractional boxes, windows, flips and padding."""

import numpy as np
import pytest
from PIL import Image

from ffcv_ops.kernels import resample
from ffcv_ops.kernels.span import Span

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resampled(image, *, size, box=None, limits=None, full=None, window=(0, 0), flip=False, interpolation="bicubic",
              at_once=None):  # fmt: skip
    """Our resampler on `image` uint8 [height, width, 3] -> [size_y, size_x, 3]; box and limits as (t, l, b, r).
    at_once: rows of the image that come at a time."""
    filter_number = resample.NAMES[interpolation]
    height, width, _ = image.shape
    top, left, bottom, right = box or (0, 0, height, width)
    limit = limits or (top, left, bottom, right)
    full = full or size
    work = resample.workspace(max(height, width), *size, filter_number)
    down = resample.Axis(float(top), float(bottom), Span(limit[0], limit[2]), full[0], window[0], False)
    across = resample.Axis(float(left), float(right), Span(limit[1], limit[3]), full[1], window[1], flip)
    rows = resample.fill_taps(down, filter_number, work.vertical)
    columns = resample.fill_taps(across, filter_number, work.horizontal)
    planes = np.empty((3, *size), np.uint8)
    step = at_once or rows.end - rows.begin
    for y in range(rows.begin, rows.end, step):
        n = min(step, rows.end - y)
        rgbx = np.full(((n + 16) * width + 16, 4), 99, np.uint8)  # what follows the image must not matter
        rgbx[: n * width, :3] = image[y : y + n].reshape(-1, 3)
        pixels = rgbx.view(np.uint32)[:, 0]
        resample.take_rows(resample.Touched(rows, columns), pixels, width, y, n, work, planes)
    return planes.transpose(1, 2, 0)


def assert_equal(ours, pillow):
    np.testing.assert_array_equal(ours, np.asarray(pillow))


@pytest.mark.parametrize("at_once", [None, 16, 48])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (64, 64), (600, 500), (33, 97), (20, 250), (1, 1)])
def test_crop_then_resize(photos, odd_images, pillow_resize, interpolation, size, at_once):
    for image in [*photos.values(), *odd_images.values()]:
        height, width, _ = image.shape
        box = (
            height // 5,
            width // 7,
            max(height - height // 4, height // 5 + 1),
            max(width - width // 9, width // 7 + 1),
        )
        pillow = Image.fromarray(image).crop((box[1], box[0], box[3], box[2]))
        expected = pillow_resize(pillow, size[::-1], FILTERS[interpolation])
        ours = resampled(image, size=size, box=box, interpolation=interpolation, at_once=at_once)
        assert_equal(ours, expected)


@pytest.mark.parametrize("box", [(0.0, 0.0, 100.0, 120.0), (10.25, 20.5, 110.75, 151.125), (3.0, 4.0, 5.5, 5.0)])
def test_resize_of_a_box_that_sees_beyond_it(photos, pillow_resize, box):
    """Pillow's resize(box=...): fractional edges, and pixels outside the box take part."""
    for image in photos.values():
        height, width, _ = image.shape
        expected = pillow_resize(Image.fromarray(image), (96, 80), box=(box[1], box[0], box[3], box[2]))
        assert_equal(resampled(image, size=(80, 96), box=box, limits=(0, 0, height, width)), expected)


def test_flip_is_the_mirrored_result(photos, pillow_resize):
    image = photos["china"]
    expected = pillow_resize(Image.fromarray(image), (112, 112))
    ours = resampled(image, size=(112, 112), flip=True)
    assert_equal(ours, np.asarray(expected)[:, ::-1])


@pytest.mark.parametrize("window", [(0, 0), (3, 40), (-4, -4), (-2, 75), (4, 78)])
def test_window_of_a_larger_result_with_mirrored_padding(photos, pillow_resize, window):
    """SRC: resize everything, pad by 4 with reflection (NumPy's "reflect"), cut a window."""
    image = photos["china"]
    full = np.asarray(pillow_resize(Image.fromarray(image), (298, 224)))
    padded = np.pad(full, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    top, left = window[0] + 4, window[1] + 4
    ours = resampled(image, size=(224, 224), full=(224, 298), window=window)
    assert_equal(ours, padded[top : top + 224, left : left + 224])


def test_same_size_is_the_identity(photos):
    for image in photos.values():
        assert_equal(resampled(image, size=image.shape[:2]), image)


def test_flat_images_stay_flat(odd_images):
    for name in ("black", "white"):
        image = odd_images[name]
        assert len(np.unique(resampled(image, size=(50, 70)))) == 1
        assert resampled(image, size=(50, 70))[0, 0, 0] == image[0, 0, 0]
