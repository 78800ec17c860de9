"""What a benchmark ran on, as plain data for its JSON, and what its processes take of it."""

import contextlib
import datetime
import platform
import sys

import psutil

from ffcv_ops import host

LIBRARIES = ("torch", "torchvision", "ffcv", "numba", "numpy", "pillow", "timm", "nvidia-dali-cuda130", "opencv-python",
             "torchcodec", "spdl")  # fmt: skip


def describe() -> dict:
    """Processor, cores, memory, versions, date (UTC) and command line."""
    return {
        "cpu": host.processor(),
        "cores": host.usable_cores(),
        "memory_gb": round(host.memory()[0] / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": host.versions(LIBRARIES),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def in_words(machine: dict) -> str:
    """One line for a caption."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, {libraries}; {machine['date']}"


def proportional_set_size(pid: int) -> int:
    """Bytes of a process and its descendants; what n processes share counts 1/n in each."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has just ended
                total += process.memory_full_info().pss
    return total
