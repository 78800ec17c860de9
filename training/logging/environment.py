"""Where and with what a run was made: environment.json."""

import platform
import subprocess
from pathlib import Path

import torch

from ffcv_ops import host
from training.logging.records import read_json

PACKAGES = ("torch", "torchvision", "timm", "ffcv", "numba", "numpy", "pillow")
_TYPES = {
    "commit": str, "python": str, "packages": dict, "devices": list, "cores": int, "memory": str, "system": str,
    "ranks": int, "cuda": str,
}  # fmt: skip


def commit() -> str:
    """The commit of this code, with -dirty where files differ from it; unknown outside of a git repository."""
    here = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return answer.stdout.strip() or "unknown"


def environment(world: int) -> dict:
    """Commit, versions and machine of this process; `world`: the number of ranks."""
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": host.versions(PACKAGES),
        "devices": devices or [host.processor()],
        "cores": host.usable_cores(),
        "memory": f"{host.memory()[0] / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "ranks": world,
        **({"cuda": torch.version.cuda} if devices else {}),
    }


def read_environment(path: Path) -> dict:
    """What `environment` wrote, without what is damaged; {} where there is nothing."""
    content = read_json(path)
    if not isinstance(content, dict):
        return {}
    found = {name: content[name] for name, kind in _TYPES.items() if type(content.get(name)) is kind}
    if not all(isinstance(name, str) for name in found.get("devices", ())):
        del found["devices"]
    if not found.get("ranks", 1) > 0:
        del found["ranks"]
    return found
