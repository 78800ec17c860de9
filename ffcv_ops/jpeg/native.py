"""What is C: baseline.c, which decodes a part of a baseline JPEG or follows its codes to its end, and region.c, which
has the rest decoded by libjpeg-turbo, through its own API.

They are compiled once, in a few seconds, for this user, these sources and this kind of CPU, and kept beside the kernels
(warm_up.py). Without a C compiler or libjpeg-turbo's headers the pipeline decodes whole images instead, and so does
write_datasets.py: the same pixels, more work. baseline.c makes pixels on CPUs with AVX2 only.
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ffcv_ops.errors import UserError

SOURCES = [Path(__file__).with_name(name) for name in ("region.c", "baseline.c")]
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
SWITCH = "FFCV_OPS_JPEG"  # environment variable; libjpeg: baseline.c makes no pixels
PACKAGES = "libjpeg-dev (conda: libjpeg-turbo) and a C compiler"


def cache_folder(part: str = "") -> Path:
    """Where what is compiled on this machine is kept, or a part of it; it is made. UserError where it cannot be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ffcv_ops", part)
    advice = "set XDG_CACHE_HOME to a folder where compiled code may be kept"
    if folder.parts[0] == "~":
        raise UserError(f"this user has no home folder, and HOME is not set; {advice}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; {advice}") from error


@cache
def library() -> tuple[Path | None, str]:
    """The built library and ""; or None and why there is none. Builds it at the first call."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES + HEADERS) + str(_vectors()).encode())
    target = cache_folder() / f"native-{digest.hexdigest()[:16]}.so"
    why = _loads(target) if target.exists() else "not built yet"
    if why:
        why = _build(target) or _loads(target)
    return (None, why) if why else (target, "")


def _vectors() -> list[str]:
    """The compiler's flags for the vectors that pixels.h is written for; none where this CPU has others."""
    from llvmlite.binding import get_host_cpu_features  # the doctor imports this file where no package is installed

    features = get_host_cpu_features()
    return ["-mavx2", "-mbmi2"] if features.get("avx2") and features.get("bmi2") else []


def use(decoder: str) -> None:
    """auto, or libjpeg: from now on, in this process and those that it starts. auto leaves the switch as it is."""
    if decoder != "auto":
        os.environ[SWITCH] = decoder


def _loads(target: Path) -> str:
    """Why the library does not load, or ""."""
    try:
        bound = ctypes.CDLL(str(target))
    except OSError as error:
        return str(error)
    bound.region_open.restype = ctypes.c_void_p
    handle = bound.region_open()
    if not handle:
        return "libjpeg is of another version than its header"
    bound.region_close(ctypes.c_void_p(handle))
    return ""


def _build(target: Path) -> str:
    """Compiles to a temporary name first, since several ranks may do this at once. Returns what went wrong, or ""."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [*compiler, "-O3", *_vectors(), "-shared", "-fPIC", "-o", built, *SOURCES, *_libjpeg()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                return errors[0].strip() if errors else f"{compiler[0]} ended with status {done.returncode}"
            os.replace(built, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _libjpeg() -> list[str]:
    """What the compiler must be told to find libjpeg."""
    try:
        ask = ["pkg-config", "--cflags", "--libs", "libjpeg"]
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ["-ljpeg"]
    return shlex.split(asked.stdout) if asked.returncode == 0 else ["-ljpeg"]


def describe() -> str:
    """One line: which decoder is in use, and what would bring a faster one."""
    path, why = library()
    if not path:
        return f"JPEG decoder: whole images ({why}); to decode only what a crop shows, install {PACKAGES}"
    if os.environ.get(SWITCH) == "libjpeg":
        return f"JPEG decoder: libjpeg-turbo, as {SWITCH} or data.decoder says, {path}"
    if not _vectors():
        return f"JPEG decoder: libjpeg-turbo, as this CPU has no AVX2, {path}"
    return f"JPEG decoder: our own for baseline files, libjpeg-turbo for others, {path}"
