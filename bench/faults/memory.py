"""What two hundred epochs leave behind: left by `break` after two batches, and read to their ends."""

import gc
import os
from pathlib import Path

import numpy as np
import psutil

from bench.faults import betons, campaign
from bench.faults.campaign import OURS, STOCK, Fault, Figure

EPOCHS, FIRST = 200, 20  # and so many before the first look: caches and threads that are kept fill up
OF_STOCK = 30  # epochs; they take 12 MB and a thread each
MOST_MIB = 50  # that 200 epochs may grow
SIDE, BATCH = 96, 8
LIMIT = 900


def run(folder: Path, *, quick: bool) -> list[Fault | Figure]:
    data = betons.write(folder)
    count, of_stock = (20, 0) if quick else (EPOCHS, OF_STOCK)
    found = []
    for who, open_loader, epochs in ((OURS, _ours, count), (STOCK, _stock, of_stock)):
        for how, batches in (("left by break", 2), ("read to the end", betons.SAMPLES)):
            if epochs:
                ended = campaign.forked(_epochs, open_loader, data, epochs, batches, limit=LIMIT)
                found += _judged(who, f"{epochs} epochs {how}", ended)
    return found


def _judged(who: str, name: str, ended):
    if ended.value is None:
        return [Fault(who, name, "hang" if ended.status is None else "crash", ended.last_line)]
    megabytes, slope, threads, files = ended.value
    note = f"{megabytes:+.1f} MiB, {threads:+d} threads, {files:+d} files"
    leaks = megabytes > MOST_MIB or threads > 0 or files > 0
    return [
        Fault(who, name, "lost" if leaks else "harmless", note),
        Figure(who, f"growth of memory, {name}", megabytes, "MiB", MOST_MIB),
        Figure(who, f"slope over the last half, {name}", slope, "KiB/epoch"),
    ]


def _epochs(open_loader, data: Path, epochs: int, batches: int):
    """Growth in MiB, threads and files since the first FIRST epochs, and KiB per epoch over the last half."""
    begin, taken = open_loader(data), []
    process = psutil.Process()
    for number in range(FIRST + epochs):
        for place, _ in enumerate(begin(number), 1):
            if place == batches:
                break
        gc.collect()
        taken.append((process.memory_info().rss, process.num_threads(), process.num_fds()))
    first, last = taken[FIRST - 1], taken[-1]
    half = [memory for memory, _, _ in taken[FIRST + epochs // 2 :]]
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    return (last[0] - first[0]) / 2**20, slope / 2**10, last[1] - first[1], last[2] - first[2]


def _ours(data: Path):
    from config.recipe import BASE_RECIPE, load_recipe
    from ffcv_ops import loader

    stage = load_recipe(BASE_RECIPE, {"stage.resolution": str(SIDE), "stage.batch": str(BATCH), "stage.mix_chunk": "8"})
    return loader.train_loader(
        data, betons.SAMPLES, stage.stages[0], seed=0, placement=loader.Placement(workers=os.cpu_count())
    ).epoch


def _stock(data: Path):
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    image = [RandomResizedCropRGBImageDecoder((SIDE, SIDE)), ToTensor()]
    loader = Loader(
        str(data), batch_size=BATCH, num_workers=1, order=OrderOption.RANDOM, os_cache=True,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
    return lambda number: iter(loader)
