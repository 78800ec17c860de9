"""libjpeg-turbo's TurboJPEG library, which FFCV needs as well: where it is, and its numbers."""

import ctypes
import functools

from ffcv_ops.errors import UserError

NAMES = ("libturbojpeg.so.0", "libturbojpeg.so")

RGB, RGBX, GRAY = 0, 2, 6  # pixel formats: TJPF_*
ACCURATE_DCT, FAST_DCT, NO_REALLOCATION = 4096, 2048, 1024  # flags: TJFLAG_*
SUBSAMPLINGS = {"4:4:4": 0, "4:2:0": 2}  # TJSAMP_*

# The inverse DCT scales an image by scale_num / 8, with 8, 4, 2 or 1 (libjpeg's name). 8: as it is.
UNSCALED = 8


@functools.cache
def load() -> ctypes.CDLL:
    """The library. Raises UserError where it is not installed."""
    for name in NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.tjInitDecompress.restype = library.tjInitCompress.restype = ctypes.c_void_p
        library.tjBufSize.restype = ctypes.c_ulong
        return library
    raise UserError("libturbojpeg is not installed; run `apt-get install libturbojpeg0-dev` (conda: libjpeg-turbo)")
