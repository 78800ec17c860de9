"""Odd images against arrays made by hand: what is asked of each kind is written out here, not taken from Pillow."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from conversion import formats
from conversion.rgb import MAX_PIXELS, MAX_SIDE, limited_size, read_rgb
from ffcv_ops.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def stored(image, fmt, **options):
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    stream.seek(0)
    return stream


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG written chunk by chunk, for kinds that Pillow does not write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + extra + body + chunk(b"IEND", b""))


def gray(values):
    return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=-1)


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_plain_rgb_is_untouched(noise):
    assert np.array_equal(read_rgb(stored(Image.fromarray(noise), "PNG")), noise)


def test_gray_one_bit_and_palette():
    values = np.array([[0, 7, 255], [128, 1, 254]], np.uint8)
    assert np.array_equal(read_rgb(stored(Image.fromarray(values), "PNG")), gray(values))
    bits = np.array([[True, False, True], [False, True, False]])
    assert np.array_equal(read_rgb(stored(Image.fromarray(bits), "PNG")), gray(bits * 255))
    palette = Image.fromarray(np.array([[2, 1, 0]], np.uint8), "L")
    palette.putpalette([*RED, *GREEN, *BLUE])
    assert palette.mode == "P"
    assert np.array_equal(read_rgb(stored(palette, "PNG")), [[BLUE, GREEN, RED]])


def test_cmyk(noise):
    cmyk = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    expected = (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255  # each ink takes light from the paper
    found = read_rgb(stored(Image.fromarray(cmyk, "CMYK"), "TIFF"))
    assert np.abs(found - expected).max() <= 1
    inks = np.full((16, 16, 4), (0, 255, 255, 0), np.uint8)  # magenta + yellow
    found = read_rgb(stored(Image.fromarray(inks, "CMYK"), "JPEG", quality=100))
    assert np.abs(found.astype(int) - RED).max() <= 3


def test_sixteen_bit_gray_is_scaled():
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65407, 65535]], np.uint16)
    expected = gray([[0, 0, 1, 1], [127, 128, 255, 255]])  # nearest of value / 257
    for fmt in ("PNG", "TIFF"):
        assert np.array_equal(read_rgb(stored(Image.fromarray(values), fmt)), expected)
    pgm = io.BytesIO(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(read_rgb(pgm), expected)
    dark = io.BytesIO(b"P5 4 2 65535\n" + (values // 300).astype(">u2").tobytes())
    assert read_rgb(dark).max() == 1, "a dark 16-bit picture stays dark"


def test_sixteen_bit_colour_and_alpha():
    values = np.array([[[0, 257, 65535], [257 * 200, 255, 512]]], ">u2")
    assert np.array_equal(read_rgb(png(2, 1, 16, 2, [values.tobytes()])), [[(0, 1, 255), (200, 0, 2)]])
    gray_alpha = np.array([[257 * 90, 65535], [257 * 90, 0]], ">u2")
    assert np.array_equal(read_rgb(png(2, 1, 16, 4, [gray_alpha.tobytes()])), [[(90, 90, 90), WHITE]])
    clear = b"".join([struct.pack(">I", 2), b"tRNS", b"\x12\x34", struct.pack(">I", zlib.crc32(b"tRNS\x12\x34"))])
    keyed = png(2, 1, 16, 0, [np.array([0x1234, 0x1235], ">u2").tobytes()], clear)
    assert np.array_equal(read_rgb(keyed), [[WHITE, (18, 18, 18)]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 40, 255]], np.int32), [0, 40, 255]),
        (np.array([[0, 257 * 40, 65535]], np.int32), [0, 40, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 40.4, 254.6]], np.float32), [0, 40, 255]),
    ],
)
def test_thirty_two_bit_gray(values, expected):
    assert np.array_equal(read_rgb(stored(Image.fromarray(values), "TIFF")), gray([expected]))


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 65536]], np.int32),
        np.array([[-1, 200]], np.int32),
        np.array([[0, 256.5]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
    ],
)
def test_thirty_two_bit_gray_without_a_white(values):
    with pytest.raises(UserError, match="no defined white"):
        read_rgb(stored(Image.fromarray(values), "TIFF"))


def test_alpha_shows_white_through(noise):
    alpha = np.random.default_rng(2).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    share = alpha / 255.0
    expected = noise * share + 255 * (1 - share)
    rgba = Image.fromarray(np.concatenate([noise, alpha], axis=-1), "RGBA")
    for fmt in ("PNG", "TIFF"):
        assert np.abs(read_rgb(stored(rgba, fmt)) - expected).max() <= 1
    la = Image.fromarray(np.concatenate([noise[..., :1], alpha], axis=-1), "LA")
    assert np.abs(read_rgb(stored(la, "PNG")) - (noise[..., :1] * share + 255 * (1 - share))).max() <= 1


def test_transparent_colours():
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    palette.putpalette([*RED, *GREEN, *BLUE])
    assert np.array_equal(read_rgb(stored(palette, "PNG", transparency=1)), [[RED, WHITE, BLUE]])
    half = (127, 127, 255)
    assert np.array_equal(read_rgb(stored(palette, "PNG", transparency=b"\xff\x00\x80")), [[RED, WHITE, half]])
    assert np.array_equal(read_rgb(stored(palette, "GIF", transparency=2)), [[RED, GREEN, WHITE]])
    colours = Image.fromarray(np.array([[RED, (10, 20, 30)]], np.uint8))
    assert np.array_equal(read_rgb(stored(colours, "PNG", transparency=(10, 20, 30))), [[RED, WHITE]])
    grays = Image.fromarray(np.array([[5, 6]], np.uint8))
    assert np.array_equal(read_rgb(stored(grays, "PNG", transparency=5)), [[WHITE, (6, 6, 6)]])


SHOWN = {  # EXIF orientation -> how the stored rows and columns must be turned to be upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(noise, orientation, fmt):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if fmt == "WEBP" else {}
    found = read_rgb(stored(Image.fromarray(noise), fmt, exif=exif, **options))
    assert np.array_equal(found, SHOWN[orientation](noise))


def test_exif_orientation_of_a_jpeg_before_the_size_limit(noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(noise).resize((80, 40))
    assert read_rgb(stored(wide, "JPEG", exif=exif), max_side=20).shape == (20, 10, 3)


def test_senseless_exif_is_ignored(noise):
    exif = Image.Exif()
    exif[0x0112] = 9
    assert np.array_equal(read_rgb(stored(Image.fromarray(noise), "PNG", exif=exif)), noise)
    image = Image.fromarray(noise)
    for rubbish in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03"):
        assert read_rgb(stored(image, "JPEG", exif=rubbish)).shape == noise.shape


def test_size_limits():
    assert limited_size(500, 375) == (500, 375)
    assert limited_size(1000, 750, max_side=500) == (500, 375)
    assert limited_size(1000, 750, min_side=256) == (341, 256)
    assert limited_size(1000, 750, max_side=500, min_side=256) == (341, 256)
    assert limited_size(3000, 300, max_side=500, min_side=256) == (500, 50)
    assert limited_size(100, 80, max_side=500, min_side=256) == (100, 80)
    assert limited_size(10_000, 3, max_side=500) == (500, 1)


def test_reduction_averages():
    """A checkerboard of single pixels, whose mean is 127.5, must not come out as black or white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    reduced = read_rgb(stored(Image.fromarray(board.astype(np.uint8)), "PNG"), max_side=16)
    assert reduced.shape == (16, 16, 3)
    assert np.abs(reduced - 127.5).max() < 16


def test_unreadable():
    rng = np.random.default_rng(0)
    jpeg = stored(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG").getvalue()
    png_bytes = stored(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG").getvalue()
    cut = (jpeg[: len(jpeg) // 2], png_bytes[: len(png_bytes) // 2], jpeg[:20], jpeg[:2], b"")
    for data in (*cut, b"this is text"):
        with pytest.raises(UserError, match=r"cannot be decoded|is not an image") as caught:
            read_rgb(io.BytesIO(data))
        assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone")
    for name, words in (
        ("a.jpg", r"^is a link to .*gone, which is not there"),
        ("b.jpg", "^cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=words):
            read_rgb(tmp_path / name)


@pytest.mark.parametrize("side", [10_001, 20_000, 2**31 - 1])
def test_too_many_pixels(side):
    """A few bytes may claim any size; they are refused by their header, before any memory is taken."""
    assert side * side > MAX_PIXELS
    with pytest.raises(UserError, match="pixels"):
        read_rgb(png(side, side, 8, 2, []))


def test_too_wide():
    wide = Image.new("L", (MAX_SIDE + 1, 2), 77)
    with pytest.raises(UserError, match=r"65501 x 2 pixels: .* set image.max_side"):
        read_rgb(stored(wide, "PNG"))
    assert np.array_equal(read_rgb(stored(wide, "PNG"), max_side=500), np.full((1, 500, 3), 77))


def tiff(values, *, photometric, kind, order, bits=None):
    """An uncompressed TIFF of one gray channel, written tag by tag. kind: 1 whole numbers, 3 floating point."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes() if bits != 12 else packed_12(values)
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits or 8 * values.itemsize, 259: 1, 262: photometric, 273: None, 277: 1,
            278: height, 279: len(data), 339: kind}  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, start if v is None else v) for tag, v in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return io.BytesIO(head + entries + bytes(4) + data)


def packed_12(values):
    """Each row's numbers of 12 bits one behind the other, the highest bit first."""
    bits = (values[..., None] >> np.arange(11, -1, -1) & 1).astype(np.uint8).reshape(len(values), -1)
    return np.packbits(bits, axis=1).tobytes()


SHADES = np.array([[0.0, 0.2, 0.6, 1.0]])  # of what is shown, from black to white


@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little endian", "big endian"])
@pytest.mark.parametrize("depth", ["8", "12", "16", "float"])
def test_gray_tiffs_show_what_they_mean(photometric, order, depth):
    """White is white in every depth and byte order, or the file is refused: never the negative."""
    meant = SHADES if photometric else 1 - SHADES
    white = {"8": 255, "12": 4095, "16": 65535, "float": 1}[depth]
    dtype = {"8": np.uint8, "12": np.uint16, "16": np.uint16, "float": np.float32}[depth]
    values = (np.rint(meant * white) if depth != "float" else meant).astype(dtype)
    file = tiff(values, photometric=photometric, kind=3 if depth == "float" else 1, order=order,
                bits=12 if depth == "12" else None)  # fmt: skip
    try:
        found = read_rgb(file)
    except UserError as refusal:
        assert str(refusal).startswith("is not an image") and (depth, photometric, order) in PILLOW_REFUSES
    else:
        assert np.array_equal(found, gray(np.rint(SHADES * 255)))


PILLOW_REFUSES = {("16", 0, ">"), ("12", 0, "<"), ("12", 0, ">"), ("12", 1, ">")}

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 moveto 9 9 lineto stroke\nshowpage\n%%EOF\n"


def test_no_image_starts_a_program(monkeypatch):
    """PostScript would start Ghostscript, whatever the file is called."""

    def refuse(*args, **options):
        raise AssertionError(f"started {args}")

    for name in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, refuse)
    with pytest.raises(UserError, match=r"is not an image .known formats: AVIF, BMP, "):
        read_rgb(io.BytesIO(EPS))
    assert {"EPS", "WMF", "PSD", "FPX", "GRIB", "HDF5"}.isdisjoint(formats.FORMATS)
