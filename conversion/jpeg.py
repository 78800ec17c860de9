"""JPEG files: what their headers say, and libjpeg-turbo's decoder and encoder through its TurboJPEG library.

Decoding is exact, as in Pillow and in the training pipeline: the same pixels. Encoding pixels gives Pillow's bytes.
Pillow's copying is saved, and TurboJPEG reports damage that Pillow ignores.
"""

import ctypes
import functools
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ffcv_ops.errors import UserError
from ffcv_ops.jpeg import native
from ffcv_ops.jpeg.turbojpeg import ACCURATE_DCT, FAST_DCT, GRAY, NO_REALLOCATION, RGB, RGBX, SUBSAMPLINGS, load

SAMPLINGS = {(1, 1), (2, 1), (1, 2), (2, 2)}  # of the luma, whose chroma is 4:4:4, 4:2:2, 4:4:0 or 4:2:0
_ENCODING = ACCURATE_DCT | NO_REALLOCATION
_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JFIF = 14  # bytes of that segment; libjpeg does not take a shorter one for it
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"


class Frame(NamedTuple):
    """The header of a color JPEG (YCbCr, 8 bits, upright).

    luma: sampling factors across and down, where chroma's are 1 and 1. scan: where the entropy-coded data of a baseline
    image begin whose first scan has all components; 0 for any other image.
    """

    height: int
    width: int
    luma: tuple[int, int]
    scan: int


def frame_of(data: bytes) -> Frame | None:
    """The file's header; None where it is no JPEG, or not clearly one of that kind."""
    if data[:2] != b"\xff\xd8":
        return None
    found, baseline, ycbcr, scan = None, False, False, 0
    for marker, start, end in _segments(data):
        segment = data[start:end]
        if marker in _FRAMES:
            found, baseline = _color_frame(marker, segment), marker == _BASELINE
            ycbcr = ycbcr or segment[6::3] == b"\x01\x02\x03"
        elif marker == 0xE0 and segment[:5] == b"JFIF\0" and len(segment) >= _JFIF:
            ycbcr = True
        elif marker == 0xE1 and not _upright(segment):
            return None
        elif marker == 0xEE and segment[:5] == b"Adobe":
            if segment[11:12] != b"\x01":
                return None
            ycbcr = True
        elif marker == _START_OF_SCAN:
            whole, scan = segment[:1] == b"\x03", end
    if found is None or not ycbcr or not scan:
        return None
    return Frame(*found, scan if baseline and whole else 0)


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    """(height, width) from the frame header of a JPEG with three components; (0, 0) without one."""
    for marker, start, end in _segments(data):
        if marker in _FRAMES:
            segment = data[start:end]
            is_color = len(segment) > 5 and segment[5] == 3
            return (int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")) if is_color else (0, 0)
    return 0, 0


def _segments(data):
    """Yields (marker, start of its content, end) up to the first scan."""
    position, marker = 2, None
    while marker != _START_OF_SCAN and position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, position + 4, position + 2 + length
        position += 2 + length


def _color_frame(marker, segment):
    """(height, width, luma) of a frame header: precision, height, width, components; id, sampling, table of each."""
    if marker not in (_BASELINE, _PROGRESSIVE) or len(segment) != 15 or segment[0] != 8 or segment[5] != 3:
        return None
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    luma, *chroma = (divmod(sampling, 16) for sampling in segment[7::3])
    if luma not in SAMPLINGS or chroma != [(1, 1)] * 2 or not height or not width:
        return None
    return height, width, luma


def _upright(segment):
    if not segment.startswith(b"Exif\0\0"):
        return b"Orientation" not in segment  # XMP may ask for a turn too
    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(ExifTags.Base.Orientation, 1) not in range(2, 9)
    except Exception:  # whatever Pillow makes of damaged metadata
        return False


def image_alone(data: bytes, frame: Frame) -> bytes | None:
    """The file without what follows the image. None where it is not baseline, or does not decode without a warning."""
    end = frame.scan and (_scan_end(data) or _decoded_end(data, frame))
    return data[:end] if end else None


def _scan_end(data):
    """Where the image ends, if following its Huffman codes shows that it is sound; else 0."""
    # Half of the time of libjpeg's decoding.
    follow, handle = _scan()
    return follow(handle, ctypes.c_char_p(data), ctypes.c_int64(len(data))) if handle else 0


def _decoded_end(data, frame):
    """The same by decoding."""
    end = data.find(_END_OF_IMAGE, frame.scan) + len(_END_OF_IMAGE)
    height, width = scaled(frame, 1)  # an eighth, in gray: inverse DCT and colors cannot fail, so most of both is saved
    gray = np.empty((height, width), np.uint8)
    sound = end > frame.scan and _decode(data[:end], height, width, gray, GRAY, FAST_DCT)
    return end if sound else 0


def decode(data: bytes, frame: Frame, scale_num: int, pixels: np.ndarray) -> bool:
    """Fills `pixels`, uint8 [height, width, 4] of the `scaled` sides, with RGB and 255. False where libjpeg reports an
    error or a warning."""
    return _decode(data, *scaled(frame, scale_num), pixels, RGBX, ACCURATE_DCT)


def scaled(frame: Frame, scale_num: int) -> tuple[int, int]:
    """Height and width after an inverse DCT that scales by scale_num / 8 (8, 4, 2 or 1)."""
    return (frame.height * scale_num + 7) // 8, (frame.width * scale_num + 7) // 8


def _decode(data, height, width, pixels, pixel_format, flags):
    source, target = ctypes.c_char_p(data), ctypes.c_void_p(pixels.ctypes.data)
    size = ctypes.c_ulong(len(data))
    return load().tjDecompress2(_decoder(), source, size, target, width, 0, height, pixel_format, flags) == 0


def encode_again(data: bytes, frame: Frame, *, quality: int) -> bytes | None:
    """The 4:2:0 JPEG at another quality (1 to 100). None for another subsampling, and where libjpeg reports an error or
    a warning."""
    # From luma and chroma, without RGB between: a tenth faster, and no second loss by converting and resampling chroma.
    if frame.luma != (2, 2):
        return None
    height, width, subsampling = frame.height, frame.width, SUBSAMPLINGS["4:2:0"]
    planes = np.empty(((height + 1) // 2, (width + 1) // 2, 6), np.uint8)  # four of luma, two of chroma
    source, target, size = ctypes.c_char_p(data), ctypes.c_void_p(planes.ctypes.data), ctypes.c_ulong(len(data))
    if load().tjDecompressToYUV2(_decoder(), source, size, target, width, 1, height, ACCURATE_DCT):
        return None

    def compress(*to):
        return load().tjCompressFromYUV(_encoder(), target, width, 1, height, subsampling, *to, quality, _ENCODING)

    return _encoded(height, width, subsampling, compress)


def encode(pixels: np.ndarray, *, quality: int, subsampling: str) -> bytes:
    """uint8 (height, width, 3), or 4 of which the last is ignored -> a JPEG file. subsampling: "4:2:0" or "4:4:4"."""
    pixels = np.ascontiguousarray(pixels)
    height, width, channels = pixels.shape
    source, pixel_format = ctypes.c_void_p(pixels.ctypes.data), RGB if channels == 3 else RGBX
    code = SUBSAMPLINGS[subsampling]

    def compress(*to):
        return load().tjCompress2(_encoder(), source, width, 0, height, pixel_format, *to, code, quality, _ENCODING)

    return _encoded(height, width, code, compress)


def _encoded(height, width, subsampling, compress):
    """The JPEG that `compress(pointer to the buffer, pointer to its length)` writes."""
    capacity = load().tjBufSize(width, height, subsampling)
    out = np.empty(capacity, np.uint8)
    target, size = ctypes.c_void_p(out.ctypes.data), ctypes.c_ulong(capacity)
    if compress(ctypes.byref(target), ctypes.byref(size)):
        raise UserError(f"{width} x {height} pixels cannot be encoded as a JPEG")
    return out[: size.value].tobytes()


@functools.cache
def _scan():
    """baseline.c's function and its state, or None and None where it cannot be built."""
    path, _ = native.library()
    if path is None:
        return None, None
    library = ctypes.CDLL(str(path))
    library.baseline_open.restype, library.baseline_end.restype = ctypes.c_void_p, ctypes.c_int64
    return library.baseline_end, ctypes.c_void_p(library.baseline_open())


@functools.cache
def _decoder():
    return ctypes.c_void_p(load().tjInitDecompress())


@functools.cache
def _encoder():
    return ctypes.c_void_p(load().tjInitCompress())
