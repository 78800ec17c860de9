"""The JPEG decoders against Pillow, which brings its own libjpeg-turbo: equal, whole, in part and scaled; and against
damaged streams."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit
from PIL import Image

from ffcv_ops.jpeg import decoder as jpeg
from ffcv_ops.jpeg import native
from ffcv_ops.kernels.span import Span


@njit
def run_region(stream, region, at_once, out):
    handle, stride, rows = jpeg.region_open(), jpeg.scaled(stream.width, region.scale_num), region.rows
    status = jpeg.region_begin(handle, stream, region, out)
    for y in range(rows.begin, rows.end, at_once):
        if status == jpeg.OK:
            status = jpeg.region_rows(handle, out[(y - rows.begin) * stride :], stride, min(at_once, rows.end - y))
    if status == jpeg.OK:
        status = jpeg.region_end(handle)
    jpeg.region_close(handle)
    return status


@njit
def run_whole(stream, region, at_once, out):
    handle = jpeg.whole_open()
    status = jpeg.whole_begin(handle, stream, region, out)
    jpeg.whole_close(handle)
    return status


def decoded(run, stream, height, width, *, scale_num=8, luma=0, rows=None, columns=None, at_once=16):
    """Status and the pixels of the box, uint8 [rows, columns, 3]. at_once: rows that come at a time."""
    h, w = jpeg.scaled(height, scale_num), jpeg.scaled(width, scale_num)
    rows, columns = Span(*map(int, rows or (0, h))), Span(*map(int, columns or (0, w)))
    pixels = np.full(h * w, 0x636363, np.uint32)
    data = np.frombuffer(stream, np.uint8)
    region = jpeg.Region(scale_num, bool(luma), rows, columns)
    status = run(jpeg.Jpeg(data.ctypes.data, data.size, height, width), region, at_once, pixels)
    image = pixels.view(np.uint8).reshape(h, w, 4)[..., :3]
    return status, image[: rows.end - rows.begin, columns.begin : columns.end]


@pytest.fixture(params=["auto", "libjpeg", "whole"])
def run(request, monkeypatch):
    if request.param == "whole":
        return run_whole
    if not jpeg.REGIONS:
        pytest.skip(native.describe())
    monkeypatch.setenv(native.SWITCH, request.param)
    return run_region


def by_pillow(stream, *, mode="RGB", scale_num=8):
    image = Image.open(io.BytesIO(stream))
    if scale_num < 8:
        image.draft("RGB", (image.width * scale_num // 8, image.height * scale_num // 8))  # Pillow rounds up
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
        for scale_num in (8, 4, 2, 1):
            _, whole = decoded(run, stream, height, width, scale_num=scale_num, luma=luma)
            for _ in range(12):
                (top, bottom), (left, right) = (
                    sorted(random.choice(side + 1, 2, replace=False)) for side in whole.shape[:2]
                )
                status, part = decoded(
                    run, stream, height, width, scale_num=scale_num, luma=luma, rows=(top, bottom),
                    columns=(left, right), at_once=int(random.integers(1, 40)),
                )  # fmt: skip
                assert status == jpeg.OK
                np.testing.assert_array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_narrow_parts_at_every_column(run, photos, encode, subsampling):
    """libjpeg's upsampling is another one where it sees few columns."""
    for width in (5, 16, 17, 18, 30, 33, 34, 49):
        image = np.ascontiguousarray(photos["china"][100:149, 200 : 200 + width])
        stream = encode(image, quality=90, subsampling=subsampling)
        for scale_num in (8, 4):
            _, whole = decoded(run, stream, 49, width, scale_num=scale_num)
            for left in range(whole.shape[1]):
                for right in range(left + 1, min(left + 5, whole.shape[1] + 1)):
                    rows = (7, 20) if scale_num == 8 else (3, 11)
                    _, part = decoded(run, stream, 49, width, scale_num=scale_num, rows=rows, columns=(left, right))
                    np.testing.assert_array_equal(part, whole[rows[0] : rows[1], left:right])


@pytest.mark.parametrize("scale_num", [4, 2, 1])
def test_scaled_images_equal_pillows_draft_mode(run, photos, encode, scale_num):
    for image in photos.values():
        stream = encode(image, quality=90)
        status, ours = decoded(run, stream, *image.shape[:2], scale_num=scale_num)
        assert status == jpeg.OK
        np.testing.assert_array_equal(ours, by_pillow(stream, scale_num=scale_num))


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
    handle, statuses = jpeg.open_decoder(), [0 for _ in range(0)]
    region = jpeg.Region(8, False, Span(0, height), Span(0, width))
    for data in streams:
        status = jpeg.begin(handle, jpeg.Jpeg(data.ctypes.data, data.size, height, width), region, out)
        if status == jpeg.OK:
            status = jpeg.rows(handle, out, width, height)
        if status == jpeg.OK:
            status = jpeg.end(handle)
        statuses.append(status)
    jpeg.close_decoder(handle)
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


def test_a_stream_without_tables_does_not_take_those_of_the_one_before(photos, encode):
    image = np.ascontiguousarray(photos["cat"][:40, :40])
    good = encode(image, quality=90)
    quantizers, codes = good.index(b"\xff\xdb"), good.index(b"\xff\xc4")
    frame, scan = good.index(b"\xff\xc0"), good.index(b"\xff\xda")
    streams = (good[:quantizers] + good[frame:], good[:codes] + good[scan:], good)
    progressive = encode(image, quality=90, progressive=True)  # goes through libjpeg, and leaves it its tables
    streams = tuple(np.frombuffer(stream, np.uint8).copy() for stream in (progressive, *streams))
    pixels = np.zeros(40 * 40, np.uint32)
    if jpeg.REGIONS:
        assert [status == jpeg.OK for status in run_all_with_one_decoder(streams, 40, 40, pixels)] == [
            True, False, True, True,  # libjpeg-turbo takes the standard's codes where there are none
        ]  # fmt: skip


def test_the_switch_says_which_decoder_works(monkeypatch):
    monkeypatch.setenv(native.SWITCH, "")
    assert "libjpeg-turbo for others" in native.describe() or not native._vectors()
    native.use("auto")
    assert os.environ[native.SWITCH] == ""
    native.use("libjpeg")
    assert native.describe().startswith("JPEG decoder: libjpeg-turbo, as FFCV_OPS_JPEG or data.decoder says, ")


def test_without_a_compiler_it_says_so(tmp_path):
    """And works: the other decoder needs no build."""
    code = "from ffcv_ops.jpeg import decoder as jpeg, native; print(jpeg.REGIONS, native.describe())"
    environment = {"PATH": "/nowhere", "CC": "/nowhere/cc", "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("False JPEG decoder: whole images (")
    assert "/nowhere/cc" in ran.stdout and "install libjpeg" in ran.stdout
