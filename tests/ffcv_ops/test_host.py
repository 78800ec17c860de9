import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ffcv_ops import host

ROOT = Path(__file__).resolve().parents[2]


def test_light_modules_stay_light():
    """Command lines import them before they have read their arguments."""
    program = "import sys, ffcv_ops.errors, ffcv_ops.files, ffcv_ops.host; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "numba", "torch", "ffcv"} & set(loaded.stdout.split())


def test_memory_and_cores_agree_with_psutil():
    total, available, limit = host.memory()
    assert total == psutil.virtual_memory().total
    assert 0 < available <= total
    assert limit is None or limit < total
    assert host.cores()[0] == len(psutil.Process().cpu_affinity())


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups(tmp_path, monkeypatch, version):
    """The tightest of the groups from the inner one to the root."""
    own = [line.split(":", 2)[1:] for line in host.Path("/proc/self/cgroup").read_text().splitlines()]
    for controllers, place in own:
        inner = tmp_path / controllers / place.lstrip("/")
        inner.mkdir(parents=True, exist_ok=True)
        if version == 2:
            (inner / "cpu.max").write_text("max 100000\n")
            (tmp_path / controllers / "cpu.max").write_text("150000 100000\n")
            (inner / "memory.max").write_text(f"{2**30}\n")
        else:
            (inner / "cpu.cfs_quota_us").write_text("150000\n")
            (inner / "cpu.cfs_period_us").write_text("100000\n")
            (inner / "memory.limit_in_bytes").write_text(f"{2**30}\n")
    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    assert host.cores()[1] == 1.5
    assert host.usable_cores() == 1
    assert host.memory()[2] == 2**30


@pytest.mark.parametrize(
    "allowed, limit, processes, usable, share",
    [
        (8, None, 1, 8, 8),
        (8, None, 3, 8, 2),
        (8, 3.5, 1, 3, 3),
        (8, 0.5, 1, 1, 1),
        (2, None, 8, 2, 1),
        (4, 16.0, 2, 4, 2),
    ],
)
def test_usable_cores_and_a_process_share_of_them(monkeypatch, allowed, limit, processes, usable, share):
    monkeypatch.setattr(host, "cores", lambda: (allowed, limit))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert (host.usable_cores(), host.cores_per_process()) == (usable, share)


def test_names_and_versions():
    assert host.processor() and host.processor().isprintable()
    assert host.versions(["psutil", "no-such-package"]) == {"psutil": psutil.__version__}


def test_no_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    assert host.cores()[1] is None
    assert host.memory()[2] is None


@pytest.mark.parametrize("size", [1, 10_000, 5 * 2**20 + 3])
def test_read_speed_reads_no_more_than_there_is(tmp_path, monkeypatch, size):
    path = tmp_path / "x"
    path.write_bytes(os.urandom(size))
    speed, _ = host.read_speed(path)
    assert speed > 0
    counted = []
    monkeypatch.setattr(host.os, "preadv", lambda file, into, place: counted.append(place) or 1)
    host.read_speed(path, most=2**20)
    assert len(counted) == 1, "bounded by bytes"


def test_file_systems():
    assert host.file_system_of(host.Path("/proc/self/status")) == "proc"
