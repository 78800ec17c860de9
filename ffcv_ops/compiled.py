"""How the Numba kernels of this package are compiled and where the machine code is kept.

Numba's disk cache looks only at the file of the function itself, so an edit of `pixels.py` would leave a stale
kernel in the cache of `transform.py`. Ours is keyed on the source of the whole package instead.

A kernel is compiled when it is first called, and numba is imported no sooner: a recipe is read, and help shown, by
modules that hold kernels, and `import numba` costs 0.75 s of processor time.
"""

import functools
import hashlib
import importlib.util
import sys
import threading
from pathlib import Path

from ffcv_ops.errors import UserError

_OPTIONS = {"cache": True, "error_model": "numpy"}  # no fast-math: the same bits whichever loop code is compiled into
_lock = threading.RLock()


class Kernel:
    """A function that becomes machine code and runs without the GIL. Other kernels may call it."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.py_func = function
        self._dispatcher = None

    @property
    def dispatcher(self):
        with _lock:
            if self._dispatcher is None:
                self._dispatcher = _cached(lambda numba: numba.njit(self.py_func, nogil=True, **_OPTIONS))
            return self._dispatcher

    def __call__(self, *arguments):
        return (self._dispatcher or self.dispatcher)(*arguments)


def kernel(function) -> Kernel:
    """Makes a function of this package, or of a user's own augmentation, a kernel; the machine code is kept on disk."""
    return Kernel(function)


def callback(function, signature):
    """`function` compiled for one Numba signature, as a C callback: its `address` is what a kernel can be handed."""
    return _cached(lambda numba: numba.cfunc(signature, **_OPTIONS)(function))


def module(name: str):
    """A module of this package that imports numba, imported when something of it is first used."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules[name] = lazy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lazy)
    return lazy


def _cached(compile):
    """`compile(numba)`, with what it makes kept in our folder."""
    numba = _numba()
    with _lock:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = cache_folder()
        try:
            return compile(numba)
        finally:
            numba.config.CACHE_DIR = before


@functools.cache
def _numba():
    """The module numba, which takes a Kernel for its dispatcher from now on."""
    import numba
    from numba.extending import typeof_impl

    if numba.config.DISABLE_JIT:
        raise UserError("NUMBA_DISABLE_JIT is set: kernels that are not compiled would take hours; unset it")
    typeof_impl.register(Kernel)(lambda value, context: numba.typeof(value.dispatcher))
    return numba


@functools.cache
def cache_folder() -> str:
    """Where the machine code of these sources is kept. UserError where nothing can be written."""
    from ffcv_ops.jpeg import native

    digest = hashlib.sha256()
    package = Path(__file__).parent
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode() + source.read_bytes())
    digest.update(str(native.library()[0]).encode())  # kernels are bound to the JPEG decoder in use
    return str(native.cache_folder(digest.hexdigest()[:16]))
