"""Compiles the kernels that a loader needs before anyone waits for a batch: once for this user and these sources.

    python -m ffcv_ops.warm_up      # builds the C part too, and says which JPEG decoder is in use

setup.sh runs that. A training run calls `prepare_kernels(log.say)` before its first step, where it is a matter of
loading them from the disk; else the first epoch would wait for the compiler and call it waiting for data.
"""

import contextlib
import fcntl
import hashlib
import platform
import time
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from rich.console import Console

from ffcv_ops import compiled, order, rng
from ffcv_ops.augment import chain, load
from ffcv_ops.errors import exits_cleanly
from ffcv_ops.jpeg import native
from ffcv_ops.rng import RandomKey
from ffcv_ops.transform import TransformParams, transform_image

_ANY = TransformParams()


def prepare_kernels(say: Callable[[str], None] = print, params: TransformParams = _ANY) -> None:
    """Compiles what a loader with such `params` runs, or loads it from the disk cache, in less than a second.

    Where it must compile, `say` hears of it, and a terminal shows that it is still at it. Of several processes on a
    machine one compiles while the others wait for it. Raises UserError where the cache cannot be written.
    """
    folder = Path(compiled.cache_folder())
    stamp = folder / f"ready-{_compiled_for(params)}"
    if not stamp.exists():
        with open(folder / "lock", "w") as lock:
            with contextlib.suppress(OSError):  # a network mount without locks: each process compiles
                fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however it ends
            if not stamp.exists():
                _compile_all(params, say)
                stamp.touch()
                return
    _run_all(params)


def _compile_all(params, say):
    say("compiling kernels (once, about half a minute)")
    began, console = time.monotonic(), Console(stderr=True)
    with console.status("compiling kernels") if console.is_terminal else contextlib.nullcontext():
        _run_all(params)
    say(f"kernels compiled in {time.monotonic() - began:.0f} s")


def _compiled_for(params):
    """What machine code depends on besides the sources: interpreter, processor, types of the parameters."""
    processor = llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()
    words = (platform.python_version(), numba.__version__, *processor, str(numba.typeof(params)))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _run_all(params):
    """Runs each kernel that a loader calls, with the types that it gives it."""
    key = RandomKey(0, 0)
    transform_image(np.zeros((8, 8, 3), np.uint8), params, resolution=8, key=key)
    order.shuffled(8, seed=0, epoch=0)
    rng.bits(key, 0)  # these three: of stages, mixing and replaced samples
    rng.uniform(key, 0)
    rng.uniform_int(key, 0, 2)


@exits_cleanly
def main() -> None:
    print(native.describe())
    prepare_kernels()
    for name in chain.declared():  # else each is compiled when a recipe first names it
        load.compiled(load.from_text(name), 0)


if __name__ == "__main__":
    main()
