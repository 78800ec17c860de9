"""Tiny limits and GPUs that are not seen: each is named with the line that mends it."""

import resource
import subprocess
import sys
from pathlib import Path

from ffcv_ops import host
from tools.doctor.findings import FAULT, OK, WARNING

ROOT = Path(__file__).resolve().parents[3]


def test_few_open_files(stand_ins):
    done = subprocess.run(
        [sys.executable, "-m", "tools.doctor"], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "fault: open files: 60 at a time" in done.stdout and "    ulimit -n" in done.stdout


def test_gpus(tmp_path, monkeypatch, torch_with, found):
    tools = tmp_path / "tools"
    tools.mkdir()
    smi = tools / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor i in 1 2; do echo 'NVIDIA H100, 81559 MiB, 580.1'; done\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    (row,) = found("GPUs")
    assert row.state == FAULT and "a build without CUDA" in row.found
    torch_with(gpus=2, cuda="13.2", nccl=True)
    (row,) = found("GPUs")
    assert row.state == OK and "2: NVIDIA H100 80 GiB" in row.found and "bf16" in row.found
    torch_with(gpus=2, cuda="13.2", nccl=False)
    (row,) = found("NCCL")
    assert row.state == FAULT
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    (row,) = found("GPU driver")
    assert row.state == FAULT and "mismatch" in row.found


def test_a_forgotten_world(monkeypatch, found):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    (row,) = found("processes")
    assert row.state == WARNING and row.fix.startswith("unset RANK WORLD_SIZE")


def test_limits_of_a_container(monkeypatch, found):
    monkeypatch.setattr(host, "cores", lambda: (8, 1.5))
    monkeypatch.setattr(host, "memory", lambda: (64 * 2**30, 40 * 2**30, 2**30))
    (row,) = found("cores")
    assert row.state == WARNING and "to 1.5; used: 1" in row.found and "--cpus" in row.fix
    (row,) = found("memory")
    assert row.state == WARNING and "control group: 1.0 GiB" in row.found
