"""What two hundred epochs leave behind: left by `break` after two batches, and read to their ends."""

import gc
import os
from pathlib import Path

import numpy as np
import psutil

from bench.faults import betons
from bench.faults.suite import Fault, Figure, finished
from bench.processes import Server

EPOCHS, FIRST = 200, 20  # and so many before the first look: caches and threads that are kept fill up
MOST_MIB = 50  # that 200 epochs may grow
SIDE, BATCH = 96, 8
LIMIT = 900


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault | Figure]:
    data = betons.write(folder, server)
    epochs, found = 20 if quick else EPOCHS, []
    for how, batches in (("left by break", 2), ("read to the end", betons.SAMPLES)):
        name, ended = f"{epochs} epochs {how}", finished(server.start((_growth, data, epochs, batches)), LIMIT)
        if ended.value is None:
            found.append(Fault(name, "hang" if ended.status is None else "crash", ended.last_line))
            continue
        mib, slope, threads, files = ended.value
        outcome = "lost" if mib > MOST_MIB or threads > 0 or files > 0 else "harmless"
        found += [
            Fault(name, outcome, f"{mib:+.1f} MiB, {threads:+d} threads, {files:+d} files"),
            Figure(f"growth of memory, {name}", mib, "MiB"),
            Figure(f"slope over the last half, {name}", slope, "KiB/epoch"),
        ]
    return found


def _growth(data: Path, epochs: int, batches: int) -> tuple[float, float, int, int]:
    """Growth in MiB since the first FIRST epochs, KiB per epoch over the last half, more threads, more files."""
    loader, taken, process = _loader(data), [], psutil.Process()
    for number in range(FIRST + epochs):
        for place, _ in enumerate(loader.epoch(number), 1):
            if place == batches:
                break
        gc.collect()
        taken.append((process.memory_info().rss, process.num_threads(), process.num_fds()))
    first, last = taken[FIRST - 1], taken[-1]
    half = [memory for memory, _, _ in taken[FIRST + epochs // 2 :]]
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    return (last[0] - first[0]) / 2**20, slope / 2**10, last[1] - first[1], last[2] - first[2]


def _loader(data: Path):
    from config.recipe import BASE_RECIPE, load_recipe
    from training import loading as loader

    stage = load_recipe(BASE_RECIPE, {"stage.resolution": str(SIDE), "stage.batch": str(BATCH), "stage.mix_chunk": "8"})
    placement = loader.Placement(workers=os.cpu_count())
    return loader.train_loader(data, betons.SAMPLES, stage.stages[0], seed=0, placement=placement)
