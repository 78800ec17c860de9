"""Cores, memory, open files, GPUs, other processes, shared memory and the disk that a run writes to."""

import os
import resource
import shutil
import subprocess

from ffcv_ops import host
from tools.doctor.findings import FAULT, OK, WARNING, Finding

GIB = 2**30
LEAST_FILES = 128  # a rank: its log, its data, libraries, sockets
LEAST_SHM = 2**30  # NCCL wants some hundred MB for eight ranks; Docker gives 64 MB
LEAST_DISK = 2 * GIB  # two checkpoints of a ViT-S, its weights, logs


def cores():
    usable, limit = host.cores()
    found = f"{usable} of {os.cpu_count()} usable"
    if limit is not None and limit < usable:
        found += f", but the control group limits them to {limit:g}; used: {host.usable_cores()}"
        yield Finding("cores", WARNING, found, "give the container more (docker run --cpus=...)")
    else:
        yield Finding("cores", OK, found)


def memory():
    total, available, limit = host.memory()
    found = f"{total / GIB:.1f} GiB, {available / GIB:.1f} available"
    found += f", control group: {limit / GIB:.1f} GiB" if limit else ""
    tight = min(available, limit or available) < 2 * GIB
    yield Finding("memory", WARNING if tight else OK, found, "end other programs, or raise the container's limit")


def open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < LEAST_FILES
    most = "unlimited" if hard == resource.RLIM_INFINITY else hard
    yield Finding("open files", FAULT if few else OK, f"{soft} at a time (may be raised to {most})", "ulimit -n 4096")


def gpu(torch):
    """What the driver lists and what torch sees."""
    ask = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listed = []
    if shutil.which(ask[0]):
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=60)
        listed = asked.stdout.strip().splitlines()
        if asked.returncode:
            broken = f"nvidia-smi: {(asked.stdout + asked.stderr).strip().splitlines()[-1]:.100}"
            yield Finding("GPU driver", FAULT, broken, "install or reload the driver; in Docker: run --gpus=all")
            return
    seen = torch["gpus"]
    if seen:
        names = ", ".join(f"{name} {size / GIB:.0f} GiB" for name, size in seen)
        found = f"{len(seen)}: {names}; CUDA {torch['cuda']}, " + ("bf16" if torch["bf16"] else "no bf16, so fp16")
        yield Finding("GPUs", OK, found)
        if len(seen) < len(listed):
            hidden = f"torch sees {len(seen)} of {len(listed)}"
            yield Finding("GPUs", WARNING, hidden, "unset CUDA_VISIBLE_DEVICES, if that is not meant")
    elif listed:
        why = "torch is a build without CUDA" if torch["cuda"] is None else f"torch has CUDA {torch['cuda']}"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why += f", CUDA_VISIBLE_DEVICES={hidden!r}" if hidden is not None else ""
        fix = "unset CUDA_VISIBLE_DEVICES" if hidden is not None else "update the driver, or install torch for its CUDA"
        yield Finding("GPUs", FAULT, f"the driver lists {len(listed)} ({listed[0]}), torch sees none: {why}", fix)
    else:
        yield Finding("GPUs", OK, "none; runs take the CPU, which is enough for recipes/demo.yaml")


def processes(torch):
    """What torchrun and NCCL would be told by this shell."""
    told = {
        name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name in os.environ
    }
    if os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        found = ", ".join(f"{name}={value}" for name, value in told.items())
        fix = "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"
        yield Finding("processes", WARNING, f"{found} in this shell: a run would wait for the others", fix)
    nccl = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")]
    if nccl:
        yield Finding("NCCL", OK, ", ".join(nccl))
    if len(torch["gpus"]) > 1 and not torch["nccl"]:
        found = "torch is built without it; several GPUs cannot work together"
        yield Finding("NCCL", FAULT, found, "python -m pip install --force-reinstall -c constraints.txt torch")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and 0 < int(threads) < host.cores()[0] and not torch["gpus"]:
        yield Finding(
            "threads", WARNING, f"OMP_NUM_THREADS={threads}: a model on the CPU uses no more", "unset OMP_NUM_THREADS"
        )


def shared_memory(gpus):
    size = shutil.disk_usage("/dev/shm").total
    small = size < LEAST_SHM and gpus > 1
    fix = "docker run --shm-size=8g ..., or mount -o remount,size=8g /dev/shm"
    yield Finding("/dev/shm", WARNING if small else OK, f"{size / GIB:.2f} GiB", fix)


def disk(folder):
    """Room for checkpoints where a run would write."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, kind = shutil.disk_usage(there).free, host.file_system_of(there)
    found = f"{there}: {free / GIB:.1f} GiB free, {kind}"
    if not os.access(there, os.W_OK):
        yield Finding("disk", FAULT, f"{there} cannot be written", "--log.out=/a/folder/you/may/write")
    else:
        yield Finding("disk", WARNING if free < LEAST_DISK else OK, found, "make room, or --log.out=/another/disk")
