"""What does it cost to hold every stored image against its checksum? Our loader with and without, in turns.

    python -m bench.checks [--quick] [--corpus DIR] [--json FILE]

One process, one thread, the same epochs of `bench.loader`'s JPEGs; processor time, which other work on the machine
disturbs less than wall time. `sum alone`: XXH64 of those JPEGs, while they are in cache and while they are not. A ratio
is the median of those of the turns.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from bench import corpus, report
from config.recipe import BASE_RECIPE, load_recipe
from ffcv_ops.compiled import kernel
from ffcv_ops.errors import exits_cleanly
from ffcv_ops.loader import Placement, train_loader
from ffcv_ops.prefetch import Loader
from ffcv_ops.storage.checksum import xxh64
from ffcv_ops.storage.index import describe

BATCH = 40
VIEWS = (("rrc", 128), ("rrc", 224), ("src", 192))


def epochs_of(path: Path, crop: str, resolution: int) -> dict[str, Loader]:
    """The loader as it is, and one to which the index says that there are no checksums."""
    stage = dataclasses.replace(
        load_recipe(BASE_RECIPE).stages[0], crop=crop, resolution=resolution, batch=BATCH, mix_chunk=BATCH, repeats=1
    )
    made = {
        name: train_loader(path, describe(path).samples, stage, seed=0, placement=Placement(workers=1))
        for name in ("checked", "unchecked")
    }
    assert made["checked"].decoder.index.checksums is not None
    made["unchecked"].decoder.index = made["unchecked"].decoder.index._replace(checksums=None)
    return made


def seconds(loader: Loader, epoch: int) -> float:
    """Processor time of one epoch."""
    began = time.process_time()
    for _batch in loader.epoch(epoch):
        pass
    return time.process_time() - began


def compare(path: Path, crop: str, resolution: int, turns: int) -> list[dict]:
    """Rows: ms per image of both, and what the checks add."""
    loaders, images = epochs_of(path, crop, resolution), describe(path).samples // BATCH * BATCH
    times = {name: [] for name in loaders}
    for turn in range(turns + 1):
        for name in sorted(loaders, reverse=turn % 2 == 0):
            times[name].append(seconds(loaders[name], turn))
    times = {name: values[1:] for name, values in times.items()}  # the first turn compiles
    task = f"{crop.upper()} {resolution}"
    rows = [report.row(task, name, [1000 * s / images for s in values], "ms/image") for name, values in times.items()]
    added = [100 * (one / other - 1) for one, other in zip(times["checked"], times["unchecked"], strict=True)]
    return [*rows, report.row(task, "checks", added, "% more")]


@kernel
def _many(address, size, step, times):
    total = np.uint64(0)
    for k in range(times):
        total ^= xxh64(address + np.uint64(k * step), size)
    return total


def alone(turns: int, size: int = 45_000) -> list[dict]:
    """Rows: GB/s of XXH64 over images of `size` bytes, the same one again and again or one after the other."""
    data = np.random.default_rng(0).integers(0, 256, 2000 * size, dtype=np.uint8)
    rows = []
    for task, step in (("sum alone, in cache", 0), ("sum alone, from memory", size)):
        speeds = []
        for _turn in range(turns + 1):
            began = time.process_time()
            _many(np.uint64(data.ctypes.data), size, step, 2000)
            speeds.append(len(data) / (time.process_time() - began) / 1e9)
        rows.append(report.row(task, "ours", speeds[1:], "GB/s"))
    return rows


@exits_cleanly
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, three turns")
    parser.add_argument("--corpus", type=Path, default=Path("build/bench_checks"), help="where the images are made")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    options = parser.parse_args(argv)
    images, turns = (80, 3) if options.quick else (800, 15)
    made = corpus.make(options.corpus, {"ours_jpg"}, train=images, val=len(corpus.PHOTOS))
    path = made.betons["ours_jpg"].with_name("ours_jpg_train.beton")
    rows = alone(turns)
    for crop, resolution in VIEWS[:1] if options.quick else VIEWS:
        rows += compare(path, crop, resolution, turns)
    lines = [
        [row["task"], row["name"], *(f"{row[key]:.3g}" for key in ("value", "lo", "hi")), row["unit"]] for row in rows
    ]
    header = ["task", "what", "median", "least", "most", "unit"]
    report.tell([report.Grid("Checksums in the loader", header, lines)], rows, options.json)


if __name__ == "__main__":
    main()
