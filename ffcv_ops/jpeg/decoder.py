"""libjpeg-turbo, called from Numba: JPEG bytes -> RGBX pixels, and no more of them than are wanted.

The decoder is exact: accurate DCT and "fancy" chroma upsampling, libjpeg's defaults and therefore Pillow's. (Stock
FFCV asks for the fast DCT.) A pixel is one uint32 (R in the lowest byte, X unused), so that it moves in one piece.

    handle = open_decoder()                 # for one thread at a time; close_decoder(handle) frees it
    begin(handle, jpeg, region, pixels)     # each of these three returns OK or CORRUPT
    rows(handle, pixels, stride, count)     # as often as it takes; ROWS_AT_ONCE rows at least, but for the last ones
    end(handle)

pixels: uint32, room for ROWS_AT_ONCE rows of the scaled image, or for all that it has. `rows` puts the next `count`
rows of the region into its first rows of `stride` = scaled(width) pixels, each column at its own place. CORRUPT: the
stream is damaged, ends early, or is not an image of that size. libjpeg's warnings count as damage: behind one, part of
the image is gray or stale. Damage below the region goes unnoticed: it is not seen either.

There are two ways to the same pixels. The `region` functions are C of ours and, for what it leaves, libjpeg's API
(native.py); they do the work of a box only, and hand out a few rows at a time. The `whole` ones are the TurboJPEG
library, for machines on which ours cannot be built.
"""

import ctypes
from typing import NamedTuple

import llvmlite.binding
import numpy as np
from numba import types

from ffcv_ops import stock  # noqa: F401  loads FFCV's extension and, with it, the libturbojpeg it was built against
from ffcv_ops.compiled import kernel
from ffcv_ops.jpeg import native, turbojpeg
from ffcv_ops.jpeg.turbojpeg import UNSCALED
from ffcv_ops.kernels.span import Span

OK, CORRUPT = 0, 1


class Jpeg(NamedTuple):
    """A JPEG in memory, and the sides (pixels) that it should have."""

    address: int  # uint64
    size: int  # bytes
    height: int
    width: int


class Region(NamedTuple):
    """What is wanted of it: a box of the image that is scaled by scale_num / 8."""

    scale_num: int  # 8, 4, 2 or 1
    luma: bool  # gray pixels, without decoding chroma
    rows: Span
    columns: Span


# Functions are bound by name, not by address, so kernels that call them can be kept on disk.
llvmlite.binding.load_library_permanently(turbojpeg.load()._name)
whole_open = types.ExternalFunction("tjInitDecompress", types.uintp())
whole_close = types.ExternalFunction("tjDestroy", types.int32(types.uintp))
_tj_header = types.ExternalFunction(
    "tjDecompressHeader3",
    types.int32(types.uintp, types.uintp, types.uint64, types.uintp, types.uintp, types.uintp, types.uintp),
)
_tj_decompress = types.ExternalFunction(
    "tjDecompress2",
    types.int32(types.uintp, types.uintp, types.uint64, types.uintp, *[types.int32] * 5),
)
region_open = types.ExternalFunction("region_open", types.uintp())
region_close = types.ExternalFunction("region_close", types.void(types.uintp))
_region_header = types.ExternalFunction(
    "region_header", types.void(types.uintp, types.uintp, types.uint64, types.int32, types.int32)
)
_region_start = types.ExternalFunction("region_start", types.int32(types.uintp, *[types.int32] * 5))
_region_rows = types.ExternalFunction("region_rows", types.int32(types.uintp, types.uintp, types.int64, types.int32))
region_end = types.ExternalFunction("region_end", types.int32(types.uintp))


@kernel
def scaled(side, scale_num):
    """The side of a scaled image: libjpeg rounds up."""
    return (side * scale_num + UNSCALED - 1) // UNSCALED


@kernel
def whole_begin(handle, jpeg, region, pixels):
    """Decodes all of the image and moves the wanted rows to the front of `pixels`."""
    header = np.empty(4, np.int32)  # width, height, subsampling, color space
    at, out = header.ctypes.data, pixels.ctypes.data
    if _tj_header(handle, jpeg.address, jpeg.size, at, at + 4, at + 8, at + 12) != 0:
        return CORRUPT
    if header[0] != jpeg.width or header[1] != jpeg.height:
        return CORRUPT
    # TurboJPEG takes sides, not a scale: an image of a few pixels, which several scales bring to the same sides, may be
    # scaled otherwise than by region.c.
    h, w = scaled(jpeg.height, region.scale_num), scaled(jpeg.width, region.scale_num)
    dct, pitch = turbojpeg.ACCURATE_DCT, 0  # 0: rows without gaps
    if not region.luma:
        failed = _tj_decompress(handle, jpeg.address, jpeg.size, out, w, pitch, h, turbojpeg.RGBX, dct) != 0
    else:
        gray = pixels.view(np.uint8)[3 * h * w : 4 * h * w]  # the last quarter, which is overwritten last
        at = gray.ctypes.data
        failed = _tj_decompress(handle, jpeg.address, jpeg.size, at, w, pitch, h, turbojpeg.GRAY, dct) != 0
        for x in range(h * w):
            pixels[x] = np.uint32(gray[x]) * np.uint32(0x010101)
    for x in range(w * (region.rows.end - region.rows.begin)):
        pixels[x] = pixels[w * region.rows.begin + x]
    return CORRUPT if failed else OK


@kernel
def whole_rows(handle, pixels, stride, count):
    return OK  # `whole_begin` has put them there


@kernel
def whole_end(handle):
    return OK


@kernel
def region_begin(handle, jpeg, region, pixels):
    _region_header(handle, jpeg.address, jpeg.size, jpeg.height, jpeg.width)
    columns = region.columns
    return _region_start(handle, region.scale_num, region.luma, region.rows.begin, columns.begin, columns.end)


@kernel
def region_rows(handle, pixels, stride, count):
    return _region_rows(handle, pixels.ctypes.data, stride, count)


def _load_regions() -> bool:
    path, _ = native.library()
    if path is None:
        return False
    library = ctypes.CDLL(str(path))  # not for all to see: libjpeg's names are those of other libraries' copies too
    for name in ("region_open", "region_close", "region_header", "region_start", "region_rows", "region_end"):
        llvmlite.binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    return True


REGIONS = _load_regions()

open_decoder, close_decoder, begin, rows, end = (
    (region_open, region_close, region_begin, region_rows, region_end)
    if REGIONS
    else (whole_open, whole_close, whole_begin, whole_rows, whole_end)
)
# 16 rows of 500 pixels are 32 KB: the resampler finds them in the first-level cache. `whole` has all of them at once.
ROWS_AT_ONCE = 16 if REGIONS else 1 << 30
