"""How the Numba kernels of this package are compiled and where the machine code is kept.

Numba's disk cache looks only at the file of the function itself, so an edit of `pixels.py` would leave a stale
kernel in the cache of `transform.py`. Ours is keyed on the source of the whole package instead.
"""

import functools
import hashlib
from pathlib import Path

import numba

from ffcv_ops.jpeg import native


@functools.cache
def cache_folder() -> str:
    """Where the machine code of these sources is kept."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(str(native.library()[0]).encode())  # kernels are bound to the JPEG decoder in use
    return str(native.cache_folder() / digest.hexdigest()[:16])


def kernel(function):
    """Compiles `function` to machine code that runs without the GIL; the result is kept on disk.

    Floating point stays strict (no fast-math): a sample has the same bits whichever loop it is compiled into.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = cache_folder()
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    finally:
        numba.config.CACHE_DIR = before
