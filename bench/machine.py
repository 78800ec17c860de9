"""What a benchmark ran on, as plain data for its JSON."""

import datetime
import platform
import sys
from pathlib import Path

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
        "command": " ".join(["python", *_command()]),
    }


def in_words(machine: dict) -> str:
    """One line for a caption."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, {libraries}; {machine['date']}"


def _command() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return [*program, *sys.argv[1:]]
