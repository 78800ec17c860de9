"""The machine, and what this process may use of it: cores, memory, disks. Linux only, the standard library only.

A container or a batch job has less than the machine: its affinity mask and control groups say so.
"""

import importlib.metadata
import mmap
import os
import platform
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
BLOCK = 2**20  # bytes of one read: a file system's read-ahead and a direct read are alike at this size


def cores() -> tuple[int, float | None]:
    """Cores that this process may run on, and the control group's limit in cores (None: none)."""
    quotas = [_quota(folder) for folder in _groups("cpu")]
    return len(os.sched_getaffinity(0)), min((quota for quota in quotas if quota), default=None)


def usable_cores() -> int:
    """Cores that this process can keep busy: as many as it may run on, or its control group lets it use."""
    allowed, limit = cores()
    return allowed if limit is None else max(min(allowed, int(limit)), 1)


def cores_per_process() -> int:
    """This process's share of the usable cores, where torchrun or Slurm started several on this machine."""
    return max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def processor() -> str:
    """Its name; platform.processor() is empty on most Linux machines."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(packages) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def memory() -> tuple[int, int, int | None]:
    """Bytes of the machine's memory, of what is available of it now, and of the control group's limit (None: none)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    total = 1024 * kib["MemTotal"]
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_number(folder / name) for folder in _groups("memory") for name in names]
    return total, 1024 * kib["MemAvailable"], min((limit for limit in limits if limit and limit < total), default=None)


def _groups(controller):
    """Folders of the control groups that hold this process, inner to outer."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        inner = root / place.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents)


def _quota(folder):
    """Cores of one group: `cpu.max` holds "200000 100000" (microseconds in a period) or "max 100000"."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (TypeError, ValueError):
        return None


def _number(path):
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def read_speed(path: Path, *, seconds: float = 1.5, most: int = 256 * BLOCK) -> tuple[float, bool]:
    """Bytes per second of reads spread over a file, at most for so long and so many bytes; and whether they went past
    the page cache (False where the file system cannot do that, as in memory)."""
    size = path.stat().st_size
    blocks = max(size // BLOCK, 1)
    step = max(blocks * BLOCK // most, 1)
    places = [block * BLOCK for block in range(0, blocks, step)]
    try:
        return _timed(path, os.O_DIRECT, places, seconds), True
    except OSError:
        return _timed(path, 0, places, seconds), False


def _timed(path, flags, places, seconds):
    file = os.open(path, os.O_RDONLY | flags)
    try:
        with mmap.mmap(-1, BLOCK) as page_aligned:  # direct reads want that
            began, taken = time.perf_counter(), 0
            for place in places:
                taken += os.preadv(file, [page_aligned], place)
                if time.perf_counter() - began > seconds:
                    break
            return taken / (time.perf_counter() - began)
    finally:
        os.close(file)


def file_system_of(path: Path) -> str:
    """The kind of file system a path is on: ext4, nfs4, tmpfs, ..."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, name, *_ = line.split()
        place = place.replace("\\040", " ")
        if (path.resolve() == Path(place) or Path(place) in path.resolve().parents) and len(place) >= len(best):
            best, kind = place, name
    return kind
