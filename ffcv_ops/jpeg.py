"""libjpeg-turbo, called from Numba: JPEG bytes -> RGBX pixels, and no more of them than are wanted.

The decoder is exact: accurate DCT and "fancy" chroma upsampling, libjpeg's defaults and therefore Pillow's. (Stock
FFCV asks for the fast DCT.) A pixel is one uint32 (R in the lowest byte, X unused), so that it moves in one piece.
Functions are bound by name, not by address, so kernels that call them can be kept on disk.

There are two ways to the same pixels. `region_decode` is C of ours over libjpeg's API (native.py) and does the work of
a box only; `whole_decode` is the TurboJPEG library that FFCV itself needs, for machines on which ours cannot be built.
`decode` is the one in use.
"""

import ctypes

import ffcv.libffcv  # noqa: F401  loads FFCV's extension and, with it, the libturbojpeg it was built against
import llvmlite.binding
import numpy as np
from numba import types

from ffcv_ops import native
from ffcv_ops.compiled import kernel
from ffcv_ops.errors import BadInput

OK, CORRUPT = 0, 1
WHOLE = 8  # eighths: the unscaled image

_RGBX, _GRAY = 2, 6  # TJPF_RGBX, TJPF_GRAY
_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT


def _load_turbojpeg() -> None:
    for name in ("libturbojpeg.so.0", "libturbojpeg.so"):
        try:
            ctypes.CDLL(name)
            llvmlite.binding.load_library_permanently(name)
            return
        except (OSError, RuntimeError):
            continue
    raise BadInput("libturbojpeg is not installed: run `apt-get install libturbojpeg0-dev` (conda: libjpeg-turbo)")


_load_turbojpeg()

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
_region_decode = types.ExternalFunction(
    "region_decode",
    types.int32(types.uintp, types.uintp, types.uint64, *[types.int32] * 8, types.uintp, types.int64),
)


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
def whole_decode(handle, data, size, height, width, eighths, luma, rows, columns, pixels):
    """`decode` for machines without region.c: all of the image, whatever rows and columns are asked for."""
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
    return CORRUPT if failed else OK


@kernel
def region_open():
    return _region_open()


@kernel
def region_close(handle):
    _region_close(handle)


@kernel
def region_decode(handle, data, size, height, width, eighths, luma, rows, columns, pixels):
    """`decode` by region.c."""
    return _region_decode(
        handle, data, size, height, width, eighths, luma, rows[0], rows[1], columns[0], columns[1],
        pixels.ctypes.data, scaled(width, eighths),
    )  # fmt: skip


def _load_regions() -> bool:
    path, _ = native.library()
    if path is not None:
        llvmlite.binding.load_library_permanently(str(path))
    return path is not None


REGIONS = _load_regions()

# open_decoder() -> a handle, for one thread at a time; close_decoder(handle) frees it.
#
# decode(handle, data, size, height, width, eighths, luma, rows, columns, pixels) -> OK or CORRUPT
#   Decodes `size` bytes at address `data`, an image of height x width, scaled by eighths / 8 (8, 4, 2 or 1: the inverse
#   DCT does it), into `pixels` (uint32), where pixel (y, x) of the scaled image has place y * scaled(width) + x. Only
#   rows rows[0] to rows[1] and columns columns[0] to columns[1] are sure to be there. With `luma` (0 or 1) the three
#   colours are the JPEG's luma, and its chroma is not decoded. CORRUPT: the stream is damaged, ends early, or is not an
#   image of that size. libjpeg's warnings count as damage: behind one, part of the image is grey or stale. What lies
#   behind the last row that is wanted may be damaged unnoticed: it is not seen either.
open_decoder, close_decoder, decode = (
    (region_open, region_close, region_decode) if REGIONS else (whole_open, whole_close, whole_decode)
)
