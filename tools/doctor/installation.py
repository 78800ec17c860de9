"""Python, system libraries, packages, the JPEG decoder and the kernel cache."""

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from ffcv_ops import host
from ffcv_ops.errors import UserError
from ffcv_ops.jpeg import native
from tools.doctor.findings import FAULT, OK, WARNING, Finding

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("numpy", "numba", "torch", "torchvision", "timm", "ffcv", "cv2", "setuptools")
SYSTEM_PACKAGES = "g++ pkg-config libopencv-dev libturbojpeg0-dev libjpeg-dev"
REBUILD = f"apt-get install {SYSTEM_PACKAGES} && python -m pip install --force-reinstall --no-deps --no-cache-dir ffcv"
SETUP = "./setup.sh"


def _project():
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python():
    here, wanted = platform.python_version(), _project()["requires-python"]
    fix = "make test PYTHON=python3.12 (a virtual environment with it)"
    state = OK if _within(here, wanted) else FAULT
    yield Finding("Python", state, f"{here}, {sys.executable}" + ("" if state == OK else f"; needs {wanted}"), fix)
    if sys.platform != "linux":
        yield Finding("system", FAULT, f"{sys.platform}; ffcv is for Linux", "use Linux, or WSL 2 on Windows")


def _within(version, wanted):
    """Whether a version is in a range such as ">=3.11,<3.13"; rough where the package `packaging` is missing."""
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(wanted).contains(version, prereleases=True)
    except ImportError:
        numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
        bounds = re.findall(r"(>=|<)(\d+)(?:\.(\d+))?", wanted)
        limits = [(sign, [int(major), int(minor or 0)]) for sign, major, minor in bounds]
        return all(numbers >= limit if sign == ">=" else numbers < limit for sign, limit in limits)


def system_libraries():
    from ctypes.util import find_library

    compiler = (os.environ.get("CC") or "cc").split()[0]
    missing = [] if shutil.which(compiler) else [f"a C compiler ({compiler})"]
    missing += [name for name in ("turbojpeg", "opencv_core", "jpeg") if not find_library(name)]
    found = "compiler, turbojpeg, OpenCV and jpeg found" if not missing else "not found: " + ", ".join(missing)
    yield Finding("system libraries", WARNING if missing else OK, found, f"apt-get install {SYSTEM_PACKAGES}")


def library(name, answer):
    """A library: installed, in the range of pyproject.toml, importable."""
    package = {"cv2": "opencv-python"}.get(name, name)
    wanted, version, error = _ranges().get(package), host.versions([package]).get(package), answer.get("error")
    if version is None and error:
        yield Finding(name, FAULT, f"not installed ({error:.100})", SETUP)
    elif error:
        yield Finding(name, FAULT, f"{version}, does not import: {error:.200}", _mend(name, error))
    elif wanted and version and not _within(version, wanted):
        yield Finding(
            name, FAULT, f"{version}; needs {wanted}", f"python -m pip install -c constraints.txt '{package}{wanted}'"
        )
    else:
        yield Finding(name, OK, version or "found")


def _ranges():
    """{"torch": ">=2.6"} of pyproject.toml."""
    project = _project()
    asked = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    parts = (re.match(r"([\w-]+)(.*)", entry) for entry in asked)
    return {part[1]: part[2] for part in parts}


def _mend(name, error):
    """The line that mends an import that fails."""
    if "distutils" in error:
        return "python -m pip install setuptools"
    if "torchvision::nms" in error:
        return "python -m pip install --force-reinstall -c constraints.txt torch torchvision"
    if name == "ffcv" and ".so" in error:
        return REBUILD
    missing = re.search(r"No module named '(\w+)", error)
    if missing and missing[1] != name:
        return f"python -m pip install -c constraints.txt {missing[1]}"
    return f"python -m pip install --force-reinstall -c constraints.txt {name}"


def other_packages():
    """Everything else that pyproject.toml names."""
    ranges = {name: wanted for name, wanted in _ranges().items() if name not in LIBRARIES}
    versions = host.versions(ranges)
    wrong = [name for name in ranges if not versions.get(name) or not _within(versions[name], ranges[name])]
    found = ", ".join(f"{name} {versions.get(name) or 'missing'}" for name in wrong) or f"{len(ranges)} in range"
    yield Finding("other packages", FAULT if wrong else OK, found, SETUP)


def decoder():
    path, _ = native.library()
    found = native.describe().partition(": ")[2]
    yield Finding("JPEG decoder", OK if path else WARNING, found, f"apt-get install {SYSTEM_PACKAGES}")


def kernel_cache():
    try:
        yield Finding("kernel cache", OK, f"{native.cache_folder()} is writable")
    except UserError as error:
        yield Finding("kernel cache", FAULT, str(error), "export XDG_CACHE_HOME=/a/folder/you/may/write")
