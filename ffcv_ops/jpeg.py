"""libjpeg-turbo, called from Numba: JPEG bytes -> RGBX pixels, and no more of them than are wanted.

The decoder is exact: accurate DCT and "fancy" chroma upsampling, libjpeg's defaults and therefore Pillow's. (Stock
FFCV asks for the fast DCT.) A pixel is one uint32 (R in the lowest byte, X unused), so that it moves in one piece.
Functions are bound by name, not by address, so kernels that call them can be kept on disk.

There are two ways to the same pixels. The `region` functions are C of ours over libjpeg's API (native.py); they do the
work of a box only, and hand out a few rows at a time. The `whole` ones are the TurboJPEG library that FFCV itself
needs, for machines on which ours cannot be built. `begin`, `rows` and `end` are those in use.
"""

import ctypes

import ffcv.libffcv  # noqa: F401  loads FFCV's extension and, with it, the libturbojpeg it was built against
import llvmlite.binding
import numpy as np
from numba import types

from ffcv_ops import native, turbojpeg
from ffcv_ops.compiled import kernel

OK, CORRUPT = 0, 1
WHOLE = 8  # eighths: the unscaled image

_RGBX, _GRAY = 2, 6  # TJPF_RGBX, TJPF_GRAY
_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT


TURBOJPEG = turbojpeg.load()._name
llvmlite.binding.load_library_permanently(TURBOJPEG)

_tj_open = types.ExternalFunction("tjInitDecompress", types.uintp())
_tj_close = types.ExternalFunction("tjDestroy", types.int32(types.uintp))
_tj_header = types.ExternalFunction(
    "tjDecompressHeader3",
    types.int32(types.uintp, types.uintp, types.uint64, types.uintp, types.uintp, types.uintp, types.uintp),
)
_tj_decompress = types.ExternalFunction(
    "tjDecompress2",
    types.int32(types.uintp, types.uintp, types.uint64, types.uintp, *[types.int32] * 5),
)
_region_open = types.ExternalFunction("region_open", types.uintp())
_region_close = types.ExternalFunction("region_close", types.void(types.uintp))
_region_begin = types.ExternalFunction(
    "region_begin", types.int32(types.uintp, types.uintp, types.uint64, *[types.int32] * 7)
)
_region_rows = types.ExternalFunction("region_rows", types.int32(types.uintp, types.uintp, types.int64, types.int32))
_region_end = types.ExternalFunction("region_end", types.int32(types.uintp))


@kernel
def scaled(side, eighths):
    """The side of a scaled image: libjpeg rounds up."""
    return (side * eighths + 7) // 8


@kernel
def whole_open():
    return _tj_open()


@kernel
def whole_close(handle):
    _tj_close(handle)


@kernel
def whole_begin(handle, data, size, height, width, eighths, luma, box_rows, box_columns, pixels):
    """Decodes all of the image and moves the wanted rows to the front of `pixels`.

    TurboJPEG takes sides, not a scale: an image of a few pixels, which several scales bring to the same sides, may be
    scaled otherwise than by region.c.
    """
    header = np.empty(4, np.int32)
    at, out = header.ctypes.data, pixels.ctypes.data
    if _tj_header(handle, data, size, at, at + 4, at + 8, at + 12) != 0:
        return CORRUPT
    if header[0] != width or header[1] != height:
        return CORRUPT
    h, w = scaled(height, eighths), scaled(width, eighths)
    if not luma:
        failed = _tj_decompress(handle, data, size, out, w, 0, h, _RGBX, _ACCURATE_DCT) != 0
    else:
        gray = pixels.view(np.uint8)[3 * h * w : 4 * h * w]  # the last quarter, which is overwritten last
        failed = _tj_decompress(handle, data, size, gray.ctypes.data, w, 0, h, _GRAY, _ACCURATE_DCT) != 0
        for x in range(h * w):
            pixels[x] = np.uint32(gray[x]) * np.uint32(0x010101)
    for x in range(w * (box_rows[1] - box_rows[0])):
        pixels[x] = pixels[w * box_rows[0] + x]
    return CORRUPT if failed else OK


@kernel
def whole_rows(handle, pixels, stride, count):
    return OK


@kernel
def whole_end(handle):
    return OK


@kernel
def region_open():
    return _region_open()


@kernel
def region_close(handle):
    _region_close(handle)


@kernel
def region_begin(handle, data, size, height, width, eighths, luma, box_rows, box_columns, pixels):
    return _region_begin(handle, data, size, height, width, eighths, luma, box_rows[0], box_columns[0], box_columns[1])


@kernel
def region_rows(handle, pixels, stride, count):
    return _region_rows(handle, pixels.ctypes.data, stride, count)


@kernel
def region_end(handle):
    return _region_end(handle)


def _load_regions() -> bool:
    path, _ = native.library()
    if path is None:
        return False
    library = ctypes.CDLL(str(path))  # not for all to see: libjpeg's names are those of other libraries' copies too
    for name in ("region_open", "region_close", "region_begin", "region_rows", "region_end"):
        llvmlite.binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    return True


REGIONS = _load_regions()

# open_decoder() -> a handle, for one thread at a time; close_decoder(handle) frees it. An image is decoded by
#
#   begin(handle, data, size, height, width, eighths, luma, box_rows, box_columns, pixels)
#   rows(handle, pixels, stride, count)     as often as it takes; ROWS_AT_ONCE rows at least, but for the last ones
#   end(handle)
#
# each of which returns OK or CORRUPT. data, size: address and length of the JPEG, an image of height x width.
# eighths: 8, 4, 2 or 1; the inverse DCT scales the image by eighths / 8, to `scaled` sides. luma: 1 for gray pixels,
# without decoding chroma. box_rows, box_columns: (begin, end) of what is wanted of the scaled image. pixels: uint32,
# room for all of it; `rows` puts the next `count` rows of the box into its first rows of `stride` = scaled(width)
# pixels, each column at its own place. CORRUPT: the stream is damaged, ends early, or is not an image of that size.
# libjpeg's warnings count as damage: behind one, part of the image is grey or stale. Damage below the box goes
# unnoticed: it is not seen either.
open_decoder, close_decoder, begin, rows, end = (
    (region_open, region_close, region_begin, region_rows, region_end)
    if REGIONS
    else (whole_open, whole_close, whole_begin, whole_rows, whole_end)
)
ROWS_AT_ONCE = 16 if REGIONS else 1 << 30
