"""libjpeg-turbo (TurboJPEG API 2), called from Numba: JPEG bytes -> RGBX pixels.

The decoder is exact: accurate DCT and "fancy" chroma upsampling, libjpeg's defaults and therefore Pillow's. (Stock
FFCV asks for the fast DCT.) A pixel is one uint32 (R in the lowest byte, X unused), so that it moves in one piece.
Functions are bound by name, not by address, so kernels that call them can be kept on disk.
"""

import ctypes

import ffcv.libffcv  # noqa: F401  loads FFCV's extension and, with it, the libturbojpeg it was built against
import llvmlite.binding
from numba import types

from ffcv_ops.compiled import kernel
from ffcv_ops.errors import BadInput

OK, CORRUPT = 0, 1

_RGBX = 2  # TJPF_RGBX
_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT


def _load_library() -> str:
    for name in ("libturbojpeg.so.0", "libturbojpeg.so"):
        try:
            ctypes.CDLL(name)
            llvmlite.binding.load_library_permanently(name)
            return name
        except (OSError, RuntimeError):
            continue
    raise BadInput("libturbojpeg is not installed: run `apt-get install libturbojpeg0-dev` (conda: libjpeg-turbo)")


LIBRARY = _load_library()

_init = types.ExternalFunction("tjInitDecompress", types.uintp())
_destroy = types.ExternalFunction("tjDestroy", types.int32(types.uintp))
_header = types.ExternalFunction(
    "tjDecompressHeader3",
    types.int32(types.uintp, types.uintp, types.uint64, types.uintp, types.uintp, types.uintp, types.uintp),
)
_decompress = types.ExternalFunction(
    "tjDecompress2",
    types.int32(types.uintp, types.uintp, types.uint64, types.uintp, *[types.int32] * 5),
)


@kernel
def open_decoder():
    """A decoder handle, for one thread at a time; give it to `close_decoder` in the end."""
    return _init()


@kernel
def close_decoder(handle):
    """Frees the handle."""
    return _destroy(handle)


@kernel
def decode(handle, data, size, height, width, pixels, header):
    """Decodes `size` bytes at address `data` into the first height * width values of `pixels` (uint32).

    `header` is int32 [4], scratch. Returns OK, or CORRUPT when the stream is damaged, ends early, or is not an image
    of height x width. libjpeg's warnings count as damage: behind one, part of the image is grey or stale.
    """
    at = header.ctypes.data
    if _header(handle, data, size, at, at + 4, at + 8, at + 12) != 0:
        return CORRUPT
    if header[0] != width or header[1] != height:
        return CORRUPT
    if _decompress(handle, data, size, pixels.ctypes.data, width, 0, height, _RGBX, _ACCURATE_DCT) != 0:
        return CORRUPT
    return OK
