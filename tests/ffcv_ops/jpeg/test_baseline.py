"""baseline.c, our decoder of baseline JPEGs, against Pillow's libjpeg-turbo, and asked whether it did decode itself;
test_decoder.py goes through all decoders."""

import ctypes
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_ops.jpeg import native


class Jpeg(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_uint64), ("height", ctypes.c_int), ("width", ctypes.c_int)]


class Box(ctypes.Structure):
    _fields_ = [("top", ctypes.c_int), ("left", ctypes.c_int), ("right", ctypes.c_int)]


@pytest.fixture(scope="module")
def decoder():
    """decode(stream, (height, width), rows, columns, at_once): the box, uint8 [rows, columns, 3]; or None where it is
    left to libjpeg."""
    path, why = native.library()
    if path is None or not native._vectors():
        pytest.skip(why or "this CPU has no AVX2")
    library = ctypes.CDLL(str(path))
    library.baseline_open.restype, library.baseline_end.restype = ctypes.c_void_p, ctypes.c_int64
    handle = ctypes.c_void_p(library.baseline_open())

    def decode(stream, size, rows=None, columns=None, at_once=16):
        (top, bottom), (left, right) = rows or (0, size[0]), columns or (0, size[1])
        pixels = np.full((bottom - top, size[1]), 0x636363, np.uint32)
        jpeg, box = Jpeg(stream, len(stream), *size), Box(top, left, right)
        sound = library.baseline_begin(handle, ctypes.byref(jpeg), ctypes.byref(box))
        for y in range(0, bottom - top, at_once):
            at, count = ctypes.c_void_p(pixels[y:].ctypes.data), min(at_once, bottom - top - y)
            sound = sound and library.baseline_rows(handle, at, ctypes.c_int64(size[1]), count)
        return pixels.view(np.uint8).reshape(*pixels.shape, 4)[:, left:right, :3] if sound else None

    def end(stream):
        return library.baseline_end(handle, ctypes.c_char_p(stream), ctypes.c_int64(len(stream)))

    decode.end = end
    yield decode
    library.baseline_close(handle)


def by_pillow(stream):
    return np.asarray(Image.open(io.BytesIO(stream)))


def noise(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


SUBSAMPLINGS = pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])


@SUBSAMPLINGS
def test_every_size_up_to_40_pixels(decoder, encode, photos, subsampling):
    photo = photos["china"][100:140, 200:240]
    for height in range(1, 41):
        for width in range(1, 41):
            stream = encode(np.ascontiguousarray(photo[:height, :width]), quality=90, subsampling=subsampling)
            ours = decoder(stream, (height, width))
            assert decoder.end(stream) == len(stream)
            if subsampling and width < 5:
                assert ours is None  # libjpeg interpolates otherwise there
            else:
                np.testing.assert_array_equal(ours, by_pillow(stream))


@SUBSAMPLINGS
def test_every_box_of_a_small_image(decoder, encode, subsampling):
    height, width = 35, 18
    stream = encode(noise(height, width), quality=80, subsampling=subsampling)
    whole = by_pillow(stream)
    for top in range(height):
        for left in range(width):
            for right in range(left + 1, width + 1):
                bottom = top + 1 + (7 * left + right) % (height - top)
                ours = decoder(stream, (height, width), (top, bottom), (left, right), 1 + right % 17)
                assert np.array_equal(ours, whole[top:bottom, left:right]), (top, bottom, left, right)


@SUBSAMPLINGS
@pytest.mark.parametrize(
    "how",
    [
        {"quality": 100},  # of noise: codes of 16 bits, values of 10
        {"quality": 90, "optimize": True},
        {"quality": 90, "restart_marker_blocks": 1},
        {"quality": 90, "restart_marker_blocks": 5},
        {"quality": 30, "restart_marker_rows": 1, "optimize": True},
    ],
    ids=str,
)
def test_tables_and_restart_intervals(decoder, photos, subsampling, how):
    for image in (noise(70, 90), photos["cat"][:70, :90], np.full((70, 90, 3), 200, np.uint8)):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", subsampling=subsampling, **how)
        stream = buffer.getvalue()
        np.testing.assert_array_equal(decoder(stream, (70, 90)), by_pillow(stream))
        np.testing.assert_array_equal(decoder(stream, (70, 90), (33, 61), (40, 71)), by_pillow(stream)[33:61, 40:71])
        assert decoder.end(stream + b"more") == len(stream)


def test_ten_thousand_boxes(decoder, encode, photos):
    random, image = np.random.default_rng(0), np.ascontiguousarray(photos["cat"][:150, :201])
    streams = [encode(image, quality=90, subsampling=subsampling) for subsampling in (0, 1, 2)]
    wholes = [by_pillow(stream) for stream in streams]
    for k in range(10_000):
        (top, bottom), (left, right) = (sorted(random.choice(side + 1, 2, replace=False)) for side in image.shape[:2])
        ours = decoder(streams[k % 3], (150, 201), (int(top), int(bottom)), (int(left), int(right)))
        assert np.array_equal(ours, wholes[k % 3][top:bottom, left:right]), (k, top, bottom, left, right)


def test_what_is_left_to_libjpeg(decoder, encode, photos):
    image = np.ascontiguousarray(photos["cat"][:64, :64])
    stream = encode(image, quality=90)
    gray = encode(np.ascontiguousarray(image[..., 0]), quality=90)
    rgb = stream.replace(b"JFIF\0", b"JFIX\0").replace(b"\1\x22\0\2\x11\1\3\x11\1", b"R\x22\0G\x11\1B\x11\1")
    rgb = rgb.replace(b"\3\1\0\2\x11\3\x11\0\x3f\0", b"\3R\0G\x11B\x11\0\x3f\0")
    assert rgb != stream and Image.open(io.BytesIO(rgb)).layer[0][0] == ord("R")
    for other in (encode(image, quality=90, progressive=True), gray, rgb, stream[:-2], stream[: len(stream) // 2]):
        assert decoder(other, (64, 64)) is None
    assert decoder(stream, (64, 65)) is None and decoder(stream, (64, 64), (0, 64), (0, 65)) is None
    assert decoder(stream, (64, 64)) is not None


def test_altered_files_are_as_libjpeg_has_them(tmp_path):
    """fuzz.c, with sanitizers. Two million alterations were run once without a finding."""
    if not native._vectors():
        pytest.skip("this CPU has no AVX2")
    names = []
    for k, subsampling in enumerate((0, 1, 2)):
        for how in ({"quality": 60}, {"quality": 90, "optimize": True}, {"quality": 75, "restart_marker_blocks": 3}):
            for size in ((8, 8), (17, 33), (40, 24)):
                names.append(tmp_path / f"{len(names)}.jpg")
                image = Image.fromarray(noise(5, 6, seed=k)).resize(size[::-1], Image.Resampling.BICUBIC)
                image.save(names[-1], subsampling=subsampling, **how)
    sources, here = [*map(str, native.SOURCES)], Path(__file__).parent
    sanitizers = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    build = ["cc", *sanitizers, *native._vectors(), "-o", tmp_path / "fuzz", here / "fuzz.c", *sources]
    if subprocess.run([*build, *native._libjpeg()], capture_output=True, timeout=200).returncode:
        pytest.skip("the compiler has no sanitizers")
    ran = subprocess.run([tmp_path / "fuzz", "0", "5000", *names], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert int(ran.stdout.split()[2]) > 500  # sound ones
