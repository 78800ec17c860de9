"""What a benchmark ran on, as plain data for its JSON."""

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "ffcv", "numba", "numpy", "pillow", "timm", "nvidia-dali-cuda130", "opencv-python")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> dict:
    """Processor, cores, memory, versions, date (UTC) and command line."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cores(),
        "memory_gb": round(int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", *_command()]),
    }


def in_words(machine: dict) -> str:
    """One line for a caption."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, {libraries}; {machine['date']}"


def _first(file: str, name: str) -> str | None:
    """The value of the first line `name: value`."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _command() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return [*program, *sys.argv[1:]]
