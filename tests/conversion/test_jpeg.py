"""Headers of JPEGs that Pillow wrote; decoding and encoding against Pillow's; damage."""

import ctypes
import io

import numpy as np
import pytest
from PIL import Image
from scipy import fft

from conversion import jpeg
from ffcv_ops.jpeg.turbojpeg import UNSCALED

PLAIN = {"quality": 90, "subsampling": "4:2:0"}
LUMA = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}


@pytest.fixture(scope="module")
def cat(photos):
    return photos["cat"]


def saved(rgb, **options):
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", **{**PLAIN, **options})
    return stream.getvalue()


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.fixture(params=["codes followed", "decoded"])
def way(request, monkeypatch):
    """How the end of an image is found; without a C compiler it is by decoding."""
    if request.param == "decoded":
        monkeypatch.setattr(jpeg, "_scan", lambda: (None, None))
    else:
        monkeypatch.setattr(jpeg, "_decoded_end", lambda data, frame: 0)


def scan_of(data):
    return data.index(b"\xff\xda") + 14


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"restart_marker_rows": 1}, {"optimize": True}]
)
def test_plain_files(cat, way, options):
    for rgb in (cat, cat[:37, :101], cat[:1, :3]):
        data = saved(np.ascontiguousarray(rgb), **options)
        luma = LUMA[options.get("subsampling", "4:2:0")]
        frame = jpeg.frame_of(data)
        assert frame == jpeg.Frame(*rgb.shape[:2], luma, scan_of(data))
        assert jpeg.image_alone(data, frame) == data
        assert jpeg.image_alone(data + b"behind it" + data, frame) == data


def test_fill_bytes_may_precede_a_marker(cat):
    data = saved(cat)
    data = data[:2] + b"\xff\xff" + data[2:]
    assert jpeg.image_alone(data, jpeg.frame_of(data)) == data


def test_a_progressive_file_is_to_be_encoded_again(cat, way):
    data = saved(cat, progressive=True)
    frame = jpeg.frame_of(data)
    assert frame == jpeg.Frame(*cat.shape[:2], (2, 2), 0)
    assert jpeg.image_alone(data, frame) is None


@pytest.mark.parametrize("value", [1, 0, 9])
def test_orientations_that_ask_for_nothing(cat, value):
    assert jpeg.frame_of(saved(cat, exif=with_orientation(value))).scan


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
    short = plain[:2] + b"\xff\xe0\x00\x0eJFIF\x00\x01\x01\x00\x00\x01\x00\x01" + plain[2 + 18 :]
    frame, scan = short.index(b"\xff\xc0"), short.index(b"\xff\xda")
    renamed = bytearray(short)  # components R, G, B and no whole JFIF segment: libjpeg takes the colours for RGB
    renamed[frame + 10 : frame + 17 : 3] = renamed[scan + 5 : scan + 10 : 2] = b"RGB"
    assert Image.open(io.BytesIO(renamed)).convert("RGB").getpixel((0, 0)) != tuple(cat[0, 0])
    xmp = plain[:2] + b"\xff\xe1\x00\x21http://ns.adobe.com Orientation" + plain[2:]
    for data in (b"", b"\xff\xd8", plain[:200], saved(cat[..., 0]), cmyk, rgb, bytes(renamed), xmp, b"\x89PNG" + plain):
        assert jpeg.frame_of(data) is None


def test_a_file_without_end(cat, way):
    data = saved(cat)
    for length in (scan_of(data), scan_of(data) + 1, len(data) - 2, len(data) - 1):
        frame = jpeg.frame_of(data[:length])
        assert frame == jpeg.Frame(*cat.shape[:2], (2, 2), scan_of(data))
        assert jpeg.image_alone(data[:length], frame) is None


def decoded(data, scale_num=8):
    frame = jpeg.frame_of(data)
    pixels = np.zeros((*jpeg.scaled(frame, scale_num), 4), np.uint8)
    return pixels[..., :3] if jpeg.decode(data, frame, scale_num, pixels) else None


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_decodes_as_pillow(cat, subsampling, progressive):
    for rgb in (cat, cat[:37, :101], cat[:1, :3]):
        data = saved(np.ascontiguousarray(rgb), subsampling=subsampling, progressive=progressive)
        assert np.array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data))))


def test_scaled_decoding(cat):
    """Against the mean over squares, which an inverse DCT of fewer coefficients comes near."""
    data = saved(cat[:256, :256])
    for scale_num in (4, 2, 1):
        n = 8 // scale_num
        means = cat[:256, :256].reshape(256 // n, n, 256 // n, n, 3).mean((1, 3))
        assert np.abs(decoded(data, scale_num) - means).mean() < 3
    assert decoded(saved(cat[:31, :57]), 4).shape == (16, 29, 3)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [30, 90, 100])
def test_encodes_as_pillow(cat, subsampling, quality):
    for rgb in (cat, cat[:37, :101], cat[:1, :3]):
        rgb = np.ascontiguousarray(rgb)
        expected = saved(rgb, quality=quality, subsampling=subsampling)
        assert jpeg.encode(rgb, quality=quality, subsampling=subsampling) == expected
        four = np.dstack([rgb, np.full(rgb.shape[:2], 77, np.uint8)])
        assert jpeg.encode(four, quality=quality, subsampling=subsampling) == expected


def planes(data):
    """Luma, and chroma at its full size, without a conversion to RGB."""
    image = Image.open(io.BytesIO(data))
    image.draft("YCbCr", image.size)
    assert image.mode == "YCbCr"
    return np.moveaxis(np.asarray(image).astype(float), -1, 0)


def requantised(luma, table):
    """The luma, of whole blocks, after a float64 DCT, a division by the table and the way back."""
    height, width = luma.shape
    blocks = luma.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2) - 128
    steps = np.reshape(table, (8, 8))
    coefficients = np.rint(fft.dctn(blocks, axes=(2, 3), norm="ortho") / steps) * steps
    blocks = fft.idctn(coefficients, axes=(2, 3), norm="ortho") + 128
    return np.clip(blocks.swapaxes(1, 2).reshape(height, width), 0, 255)


@pytest.mark.parametrize("quality", [40, 75])
def test_encoding_again_quantises_the_luma_again(cat, quality):
    """Against SciPy's DCT in float64; libjpeg's integers make another choice where a coefficient is at a tie."""
    data = saved(cat[:256, :320])
    again = jpeg.encode_again(data, jpeg.frame_of(data), quality=quality)
    image = Image.open(io.BytesIO(again))
    assert image.quantization == Image.open(io.BytesIO(saved(cat, quality=quality))).quantization
    expected = requantised(planes(data)[0], image.quantization[0])
    difference = np.abs(planes(again)[0] - expected)
    assert np.median(difference) < 0.5
    assert difference.mean() < np.abs(planes(data)[0] - expected).mean() / 5


@pytest.mark.parametrize("size", [(300, 451), (37, 101), (38, 16), (1, 3), (1, 1)])
def test_encoding_again_at_the_same_quality_hardly_changes_the_image(cat, size):
    """It loses less than encoding the colours again does, which is Pillow's way."""
    data = saved(np.ascontiguousarray(cat[: size[0], : size[1]]))
    again = jpeg.encode_again(data, jpeg.frame_of(data), quality=90)
    colours = Image.open(io.BytesIO(data))
    by_colours = planes(saved(np.asarray(colours)))
    before, after = planes(data), planes(again)
    assert after.shape == (3, *size)
    lost = np.abs(after - before).mean()
    assert lost < 0.05 and lost <= np.abs(by_colours - before).mean() * (0.2 if min(size) > 100 else 1)


def test_what_is_not_encoded_again_as_it_is(cat):
    data = saved(cat)
    assert jpeg.encode_again(data[:-700] + b"\xff\xd9", jpeg.frame_of(data), quality=90) is None
    for other in (saved(cat, subsampling="4:4:4"), saved(cat, subsampling="4:2:2")):
        assert jpeg.encode_again(other, jpeg.frame_of(other), quality=90) is None


def test_damage_is_seen(cat, way):
    """Cut anywhere, with or without an end marker. Of changed bytes in the middle half may pass for other pixels."""
    data = saved(cat)
    frame = jpeg.frame_of(data)
    for length in range(1000, len(data) - 50, 997):
        assert jpeg.image_alone(data[:length], frame) is None
        assert jpeg.image_alone(data[:length] + b"\xff\xd9", frame) is None
        assert decoded(data[:length] + b"\xff\xd9") is None
    rng, seen = np.random.default_rng(0), 0
    for place in rng.integers(1000, len(data) - 1000, 50):
        seen += jpeg.image_alone(data[:place] + rng.bytes(8) + data[place + 8 :], frame) is None
    assert seen > 15


def followed(data):
    """The length of the image by its codes alone."""
    follow, handle = jpeg._scan()
    return follow(handle, data, ctypes.c_int64(len(data)))


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 100, "subsampling": "4:4:4"}, {"quality": 20, "optimize": True}, {"restart_marker_blocks": 3}],
)
def test_codes_are_sound_only_where_libjpeg_agrees(cat, options):
    """Bytes changed, removed, put in, anywhere; libjpeg's decoder, which warns of any fault, says what is sound."""
    data = saved(cat[:120, :150], **options)
    rng, sound, faulty = np.random.default_rng(0), 0, 0
    for trial in range(3000):
        first = 2 if trial % 2 else scan_of(data)
        place = int(rng.integers(first, len(data) - 2))
        removed, added = rng.integers(0, 3, 2) if trial % 3 == 0 else (1, 1)
        changed = data[:place] + rng.bytes(added) + data[place + removed :]
        end = followed(changed)
        if end:
            sound += changed != data
            assert changed[end - 2 : end] == b"\xff\xd9"
            frame = jpeg.frame_of(changed)
            if frame:  # else another colour space, or turned
                pixels = np.empty((frame.height, frame.width, 4), np.uint8)
                assert jpeg.decode(changed[:end], frame, UNSCALED, pixels)
        else:
            faulty += 1
    assert sound > 100 and faulty > 300


def test_huffman_tables_of_any_shape(cat):
    """Pillow's optimised tables of pictures with few codes: of one bit, of sixteen, one symbol alone."""
    rng = np.random.default_rng(0)
    flat, noisy = np.full((64, 64, 3), 90, np.uint8), rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    spots = flat.copy()
    spots[::9, ::7] = 255
    steep = np.where(rng.random((800, 800, 1)) < 0.0005, noisy[:1, :1], cat[:1, :1]).astype(np.uint8)
    for rgb in (flat, spots, noisy, steep, cat):
        for quality in (5, 60, 100):
            data = saved(rgb, quality=quality, optimize=True)
            assert followed(data) == len(data)


@pytest.mark.parametrize("runs", range(9))
def test_codes_that_no_encoder_writes(runs):
    """A code of one bit for sixteen zeros; eight of these lead as far as an end of the block would."""
    tables = b"\x00" + bytes([1, *[0] * 15]) + b"\x00", b"\x10" + bytes([1, 1, *[0] * 14]) + b"\xf0\x00"
    quantizer = b"\x00" + bytes([1] * 64)
    frame = b"\x08\x00\x08\x00\x08\x03" + b"".join(bytes([k, 0x11, 0]) for k in (1, 2, 3))
    scan = b"\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00"
    segments = (0xDB, quantizer), (0xC0, frame), (0xC4, tables[0]), (0xC4, tables[1]), (0xDA, scan)
    head = b"".join(bytes([0xFF, kind, 0, 2 + len(content)]) + content for kind, content in segments)
    bits = f"0{'0' * runs}10" + 2 * "010"  # of each block: the difference of its mean, and its other codes
    bits += "1" * (-len(bits) % 8)
    data = b"\xff\xd8" + head + int(bits, 2).to_bytes(len(bits) // 8, "big") + b"\xff\xd9"
    assert followed(data) == (len(data) if runs <= 3 else 0)
    assert jpeg.frame_of(data) and (runs > 3 or decoded(data).shape == (8, 8, 3))
