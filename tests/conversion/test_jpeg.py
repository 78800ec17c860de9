"""Headers of JPEGs that Pillow wrote; decoding and encoding against Pillow's; damage."""

import io

import numpy as np
import pytest
from PIL import Image

from conversion import jpeg

PLAIN = {"quality": 90, "subsampling": "4:2:0"}


@pytest.fixture(scope="module")
def cat(photos):
    return photos["cat"]


def saved(rgb, **options):
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", **{**PLAIN, **options})
    return stream.getvalue()


def with_orientation(value):
    exif = Image.Exif()
    exif[jpeg.ORIENTATION] = value
    return exif


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"restart_marker_rows": 1}]
)
def test_plain_files(cat, options):
    data = saved(cat, **options)
    height, width, _ = cat.shape
    assert jpeg.frame_of(data) == jpeg.Frame(height, width, True, len(data))
    assert jpeg.frame_of(data + b"behind it" + data) == jpeg.Frame(height, width, True, len(data))
    assert jpeg.frame_of(data[:2] + b"\xff\xff" + data[2:]).end == len(data) + 2, "fill bytes may precede a marker"


def test_a_progressive_file_is_to_be_encoded_again(cat):
    assert jpeg.frame_of(saved(cat, progressive=True)) == jpeg.Frame(*cat.shape[:2], False, 0)


@pytest.mark.parametrize("value", [1, 0, 9])
def test_orientations_that_ask_for_nothing(cat, value):
    assert jpeg.frame_of(saved(cat, exif=with_orientation(value))).end


@pytest.mark.parametrize("value", range(2, 9))
def test_turned_files_are_not_plain(cat, value):
    assert jpeg.frame_of(saved(cat, exif=with_orientation(value))) is None


def test_other_files_are_not_plain(cat):
    stream = io.BytesIO()
    Image.fromarray(cat).convert("CMYK").save(stream, "JPEG")
    cmyk = stream.getvalue()
    plain = saved(cat)
    rgb = (
        plain[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + plain[2 + 18 :]
    )  # Adobe's mark for RGB, no JFIF
    assert Image.open(io.BytesIO(rgb)).info["adobe_transform"] == 0
    xmp = plain[:2] + b"\xff\xe1\x00\x21http://ns.adobe.com Orientation" + plain[2:]
    for data in (b"", b"\xff\xd8", plain[:200], saved(cat[..., 0]), cmyk, rgb, xmp, b"\x89PNG" + plain):
        assert jpeg.frame_of(data) is None


def test_a_file_without_end(cat):
    assert jpeg.frame_of(saved(cat)[:-2]) == jpeg.Frame(*cat.shape[:2], True, 0)


def decoded(data, eighths=8):
    frame = jpeg.frame_of(data)
    pixels = np.zeros((*jpeg.scaled(frame, eighths), 4), np.uint8)
    return pixels[..., :3] if jpeg.decode(data, frame, eighths, pixels) else None


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_decodes_as_pillow(cat, subsampling, progressive):
    for rgb in (cat, cat[:37, :101], cat[:1, :3]):
        data = saved(np.ascontiguousarray(rgb), subsampling=subsampling, progressive=progressive)
        assert np.array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data))))


def test_scaled_decoding(cat):
    """Against the mean over squares, which an inverse DCT of fewer coefficients comes near."""
    data = saved(cat[:256, :256])
    for eighths in (4, 2, 1):
        n = 8 // eighths
        means = cat[:256, :256].reshape(256 // n, n, 256 // n, n, 3).mean((1, 3))
        assert np.abs(decoded(data, eighths) - means).mean() < 3
    assert decoded(saved(cat[:31, :57]), 4).shape == (16, 29, 3)


@pytest.mark.parametrize("colour", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [30, 90, 100])
def test_encodes_as_pillow(cat, colour, quality):
    for rgb in (cat, cat[:37, :101], cat[:1, :3]):
        rgb = np.ascontiguousarray(rgb)
        expected = saved(rgb, quality=quality, subsampling=colour)
        assert jpeg.encode(rgb, quality=quality, colour=colour) == expected
        four = np.dstack([rgb, np.full(rgb.shape[:2], 77, np.uint8)])
        assert jpeg.encode(four, quality=quality, colour=colour) == expected


def test_damage_is_seen(cat):
    """Cut anywhere, with or without an end marker. Of changed bytes in the middle half may pass for other pixels."""
    data = saved(cat)
    frame = jpeg.frame_of(data)
    assert jpeg.is_sound(data, frame)
    for length in range(1000, len(data) - 50, 997):
        assert not jpeg.is_sound(data[:length], frame)
        assert not jpeg.is_sound(data[:length] + b"\xff\xd9", frame)
        assert decoded(data[:length] + b"\xff\xd9") is None
    rng, seen = np.random.default_rng(0), 0
    for place in rng.integers(1000, len(data) - 1000, 50):
        seen += not jpeg.is_sound(data[:place] + rng.bytes(8) + data[place + 8 :], frame)
    assert seen > 15
