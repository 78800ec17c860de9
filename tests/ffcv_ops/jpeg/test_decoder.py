"""The JPEG decoders against Pillow, which brings its own libjpeg-turbo: equal, whole, in part and scaled; and against
damaged streams."""

import io
import subprocess
import sys

import numpy as np
import pytest
from numba import njit
from PIL import Image

from ffcv_ops.jpeg import decoder as jpeg
from ffcv_ops.jpeg import native


@njit
def run_region(data, size, height, width, eighths, luma, rows, columns, at_once, out):
    decoder, stride = jpeg.region_open(), jpeg.scaled(width, eighths)
    status = jpeg.region_begin(decoder, data.ctypes.data, size, height, width, eighths, luma, rows, columns, out)
    for y in range(rows[0], rows[1], at_once):
        if status == jpeg.OK:
            status = jpeg.region_rows(decoder, out[(y - rows[0]) * stride :], stride, min(at_once, rows[1] - y))
    if status == jpeg.OK:
        status = jpeg.region_end(decoder)
    jpeg.region_close(decoder)
    return status


@njit
def run_whole(data, size, height, width, eighths, luma, rows, columns, at_once, out):
    decoder = jpeg.whole_open()
    status = jpeg.whole_begin(decoder, data.ctypes.data, size, height, width, eighths, luma, rows, columns, out)
    jpeg.whole_close(decoder)
    return status


def decoded(run, stream, height, width, *, eighths=8, luma=0, rows=None, columns=None, at_once=16):
    """Status and the pixels of the box, uint8 [rows, columns, 3]. at_once: rows that come at a time."""
    h, w = jpeg.scaled(height, eighths), jpeg.scaled(width, eighths)
    rows, columns = rows or (0, h), columns or (0, w)
    pixels = np.full(h * w, 0x636363, np.uint32)
    data = np.frombuffer(stream, np.uint8)
    status = run(data, data.size, height, width, eighths, luma, rows, columns, at_once, pixels)
    image = pixels.view(np.uint8).reshape(h, w, 4)[..., :3]
    return status, image[: rows[1] - rows[0], columns[0] : columns[1]]


@pytest.fixture(params=["region", "whole"])
def run(request):
    if request.param == "region" and not jpeg.REGIONS:
        pytest.skip(native.describe())
    return {"region": run_region, "whole": run_whole}[request.param]


def by_pillow(stream, *, mode="RGB", eighths=8):
    image = Image.open(io.BytesIO(stream))
    if eighths < 8:
        image.draft("RGB", (image.width * eighths // 8, image.height * eighths // 8))  # Pillow rounds up
    return np.asarray(image.convert(mode))


def test_the_c_part_is_built_where_it_can_be():
    """Every machine that can run the tests has a compiler and libjpeg-turbo's headers: ffcv is built with them."""
    assert jpeg.REGIONS, native.describe()


@pytest.mark.parametrize("quality", [30, 75, 90, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_equal_to_pillow(run, photos, odd_images, encode, quality, subsampling, progressive):
    for image in [*photos.values(), *odd_images.values()]:
        stream = encode(image, quality=quality, subsampling=subsampling, progressive=progressive)
        status, ours = decoded(run, stream, *image.shape[:2])
        assert status == jpeg.OK
        np.testing.assert_array_equal(ours, by_pillow(stream))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("luma", [0, 1])
def test_any_part_equals_that_part_of_the_whole(run, photos, odd_images, encode, subsampling, progressive, luma):
    random = np.random.default_rng(subsampling)
    for image in [*photos.values(), *odd_images.values()]:
        stream = encode(image, quality=90, subsampling=subsampling, progressive=progressive)
        height, width, _ = image.shape
        for eighths in (8, 4, 2, 1):
            _, whole = decoded(run, stream, height, width, eighths=eighths, luma=luma)
            for _ in range(12):
                (top, bottom), (left, right) = (
                    sorted(random.choice(side + 1, 2, replace=False)) for side in whole.shape[:2]
                )
                status, part = decoded(
                    run, stream, height, width, eighths=eighths, luma=luma, rows=(top, bottom), columns=(left, right),
                    at_once=int(random.integers(1, 40)),
                )  # fmt: skip
                assert status == jpeg.OK
                np.testing.assert_array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_narrow_parts_at_every_column(run, photos, encode, subsampling):
    """libjpeg's upsampling is another one where it sees few columns."""
    for width in (5, 16, 17, 18, 30, 33, 34, 49):
        image = np.ascontiguousarray(photos["china"][100:149, 200 : 200 + width])
        stream = encode(image, quality=90, subsampling=subsampling)
        for eighths in (8, 4):
            _, whole = decoded(run, stream, 49, width, eighths=eighths)
            for left in range(whole.shape[1]):
                for right in range(left + 1, min(left + 5, whole.shape[1] + 1)):
                    rows = (7, 20) if eighths == 8 else (3, 11)
                    _, part = decoded(run, stream, 49, width, eighths=eighths, rows=rows, columns=(left, right))
                    np.testing.assert_array_equal(part, whole[rows[0] : rows[1], left:right])


@pytest.mark.parametrize("eighths", [4, 2, 1])
def test_scaled_images_equal_pillows_draft_mode(run, photos, encode, eighths):
    for image in photos.values():
        stream = encode(image, quality=90)
        status, ours = decoded(run, stream, *image.shape[:2], eighths=eighths)
        assert status == jpeg.OK
        np.testing.assert_array_equal(ours, by_pillow(stream, eighths=eighths))


def test_luma_is_the_jpegs_own(run, photos, encode):
    for image in photos.values():
        stream = encode(image, quality=90)
        luma = np.asarray(Image.open(io.BytesIO(stream)).convert("YCbCr"))[..., 0].astype(int)
        status, ours = decoded(run, stream, *image.shape[:2], luma=1)
        assert status == jpeg.OK
        assert (ours[..., 0] == ours[..., 1]).all() and (ours[..., 0] == ours[..., 2]).all()
        difference = abs(ours[..., 0].astype(int) - luma)  # Pillow goes by RGB, which rounds and clips on the way
        assert difference.mean() < 0.6 and np.quantile(difference, 0.99) <= 3


def test_grayscale_jpeg(run, photos, encode):
    image = photos["cat"][..., 0]
    stream = encode(image, quality=90)
    for luma in (0, 1):
        status, ours = decoded(run, stream, *image.shape, luma=luma)
        assert status == jpeg.OK
        np.testing.assert_array_equal(ours[..., 2], np.asarray(Image.open(io.BytesIO(stream))))


def test_damage_is_reported(run, photos, encode):
    image = photos["cat"]
    stream = encode(image, quality=90)
    size = image.shape[:2]
    assert decoded(run, stream[: len(stream) // 2], *size)[0] == jpeg.CORRUPT
    assert decoded(run, b"\0\0" + stream[2:], *size)[0] == jpeg.CORRUPT
    assert decoded(run, stream, size[0] + 1, size[1])[0] == jpeg.CORRUPT
    assert decoded(run, stream, size[0], size[1] - 1)[0] == jpeg.CORRUPT
    assert decoded(run, b"", *size)[0] == jpeg.CORRUPT
    assert decoded(run, stream, *size)[0] == jpeg.OK


@njit
def run_all_with_one_decoder(streams, height, width, out):
    decoder, statuses = jpeg.open_decoder(), [0 for _ in range(0)]
    for data in streams:
        status = jpeg.begin(decoder, data.ctypes.data, data.size, height, width, 8, 0, (0, height), (0, width), out)
        if status == jpeg.OK:
            status = jpeg.rows(decoder, out, width, height)
        if status == jpeg.OK:
            status = jpeg.end(decoder)
        statuses.append(status)
    jpeg.close_decoder(decoder)
    return statuses


def test_a_decoder_survives_a_damaged_stream(photos, encode):
    """One handle goes through a whole batch."""
    image = photos["cat"]
    good = np.frombuffer(encode(image, quality=90), np.uint8).copy()
    height, width, _ = image.shape
    pixels = np.zeros(height * width, np.uint32)
    streams = (good, good[: len(good) // 2], good[:300], good)
    assert [status == jpeg.OK for status in run_all_with_one_decoder(streams, height, width, pixels)] == [
        True, False, False, True,
    ]  # fmt: skip
    np.testing.assert_array_equal(pixels.view(np.uint8).reshape(height, width, 4)[..., :3], by_pillow(good.tobytes()))


def test_without_a_compiler_it_says_so(tmp_path):
    """And works: the other decoder needs no build."""
    code = "from ffcv_ops.jpeg import decoder as jpeg, native; print(jpeg.REGIONS, native.describe())"
    environment = {"PATH": "/nowhere", "CC": "/nowhere/cc", "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("False JPEG decoder: whole images (")
    assert "/nowhere/cc" in ran.stdout and "install libjpeg" in ran.stdout
