"""Peak memory of a step: of a GPU's own, else of a process of its own."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn
from training.step import random_batch

from bench.step.contenders import contender
from bench.step.tasks import job_of
from training import distributed


def warm(step, batch, device) -> int:
    """Two steps, which compile and make the moments. Returns the peak of a GPU's memory, else 0."""
    if device.type != "cuda":
        step(*batch), step(*batch)
        return 0
    before = torch.cuda.memory_allocated() - sum(p.nbytes for p in getattr(step, "model", nn.Module()).parameters())
    torch.cuda.reset_peak_memory_stats()
    step(*batch), step(*batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def in_its_own_process(who, task, compiles) -> int:
    """Peak resident memory of two steps above what the process had before, bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, who, task, compiles).result()


def _peak(who, task, compiles):
    cpu = torch.device("cpu")
    torch.set_num_threads(distributed.threads())
    run = job_of(task, drop_path="exact", compiles=False, device=cpu)
    before = _peak_resident()
    step = contender(who, task, compiles=compiles, device=cpu, mark=lambda phase: None)
    warm(step, step.prepare(*random_batch(run, run.recipe.stages[0], task.batch)), cpu)
    return _peak_resident() - before


def _peak_resident() -> int:
    """Bytes. (What `resource` tells would begin with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
