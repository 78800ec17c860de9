"""How long does a loader take until it knows the first epoch of a very large data set, and how much memory?

    python -m bench.startup [--quick] [--samples N] [--only ours,ffcv] [--folder DIR] [--json FILE]

The data set is an index without pictures: header, metadata and allocation table of so many samples are real, the images
are a hole that takes no room on the disk. Each loader starts in a process of its own. `ours`: from checking the file to
the first epoch's order, with base.yaml's stage (three repeats) and the checksum file. `ffcv`: until its constructor
returns, which is when it has its order. Imports are counted apart. A process that takes more than --limit_gb, or ten
minutes, is ended, and that is the result.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from xxhash import xxh64_hexdigest

from bench import report
from bench.command import chosen
from conversion import beton
from ffcv_ops.errors import exits_cleanly

SAMPLES, QUICK = 14_000_000, 200_000
PAGE_SIZE, IMAGE_BYTES, CLASSES = 2**23, 45_000, 19_167
SECONDS = 600
ROOT = Path(__file__).parents[1]


# --- the data set --------------------------------------------------------------------------------------------------


def write_hole(path: Path, samples: int, *, checksums: bool = True) -> None:
    """A .beton of so many JPEGs of 45 kB, whose bytes are a hole, with x.json and x.xxh64 beside it."""
    table = np.zeros(samples, beton.sample_type())
    number, a_page = np.arange(samples), PAGE_SIZE // IMAGE_BYTES
    first = -(-(beton.metadata_start() + table.nbytes) // PAGE_SIZE) * PAGE_SIZE
    table["image"]["width"], table["image"]["height"] = 500, 375
    table["image"]["data_ptr"] = first + number // a_page * PAGE_SIZE + number % a_page * IMAGE_BYTES
    table["label"] = number * CLASSES // samples
    allocations = np.zeros(samples, beton.ALLOCATION)
    allocations["sample_id"], allocations["ptr"], allocations["size"] = number, table["image"]["data_ptr"], IMAGE_BYTES
    data_end = int(allocations["ptr"][-1]) + IMAGE_BYTES
    with open(path, "wb") as file:
        file.write(np.array((beton.VERSION, 2, PAGE_SIZE, samples, data_end), beton.HEADER).tobytes())
        fields = np.zeros(2, beton.FIELD)
        fields["type_id"] = beton.IMAGE_FIELD, beton.INT_FIELD
        fields["name"][:, :5] = list(b"image"), list(b"label")
        file.write(fields.tobytes())
        table.tofile(file)
        file.seek(data_end)
        allocations.tofile(file)
    sums = np.arange(samples, dtype=beton.CHECKSUM).tobytes()
    said = {"format": 2, "bytes": path.stat().st_size, "classes": [f"n{k:08}" for k in range(CLASSES)]}
    if checksums:
        path.with_suffix(".xxh64").write_bytes(sums)
        said |= {"index_xxh64": beton.index_checksum(path), "checksums_xxh64": xxh64_hexdigest(sums)}
    path.with_suffix(".json").write_text(json.dumps(said))


# --- the contenders, each in a process of its own -------------------------------------------------------------------


def ours(path: Path) -> dict[str, float]:
    """Seconds of each step."""
    clock = Clock()
    from config.recipe import BASE_RECIPE, load_recipe
    from ffcv_ops.loader import Placement, train_loader
    from ffcv_ops.storage.index import describe

    stage = load_recipe(BASE_RECIPE).stages[0]
    clock("import")
    data = describe(path)
    clock("describe")
    batches = train_loader(path, data.samples, stage, seed=0, placement=Placement(rank=0, world=64, workers=1))
    clock("loader")
    order = batches.sample_ids(0)
    clock("order")
    assert len(order) == len(batches) * batches.batch_size
    return clock.seconds


def ffcv(path: Path) -> dict[str, float]:
    """The same of stock FFCV, which has its order when it is built."""
    clock = Clock()
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    clock("import")
    image, label = [RandomResizedCropRGBImageDecoder((224, 224)), ToTensor()], [IntDecoder(), ToTensor()]
    Loader(
        str(path), batch_size=32, num_workers=1, os_cache=True, order=OrderOption.RANDOM, seed=0,
        pipelines={"image": image, "label": label},
    )  # fmt: skip
    clock("loader")
    return clock.seconds


CONTENDERS = {"ours": ours, "ffcv": ffcv}


class Clock:
    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def __call__(self, name: str):
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def contend(name: str, path: str, limit_gb: str) -> None:
    """What a contender's process does: one JSON line."""
    limit = int(float(limit_gb) * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    seconds = CONTENDERS[name](Path(path))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


# --- the command line ----------------------------------------------------------------------------------------------


def measure(name: str, path: Path, limit_gb: float) -> dict | str:
    """{"seconds": {...}, "peak": bytes} of a contender, or why there is none."""
    code = f"from bench.startup import contend; contend({name!r}, {str(path)!r}, {str(limit_gb)!r})"
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"ended after {SECONDS} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return f"ended at {limit_gb:g} GB of memory" if "MemoryError" in done.stderr else f"failed: {last}"


@exits_cleanly
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} samples")
    parser.add_argument("--samples", type=int, help=f"in the data set ({SAMPLES:,})")
    parser.add_argument("--only", help=f"some of {','.join(CONTENDERS)}")
    parser.add_argument("--folder", type=Path, help="where the data set is written (a temporary one)")
    parser.add_argument("--limit_gb", type=float, default=16, help="memory that a process may take")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    options = parser.parse_args(argv)
    names = chosen("contender", options.only, CONTENDERS, CONTENDERS)
    samples = options.samples or (QUICK if options.quick else SAMPLES)
    task, rows, lines = f"start-up, {samples:,} samples", [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "hole.beton"
        write_hole(path, samples)
        for name in names:
            found = measure(name, path, options.limit_gb)
            if isinstance(found, str):
                lines.append([name, found, "-", "-"])
                continue
            steps = {step: seconds for step, seconds in found["seconds"].items() if step != "import"}
            rows.append(report.row(task, name, [sum(steps.values())], "s"))
            rows.append(report.row("imports", name, [found["seconds"]["import"]], "s"))
            rows.append(report.row("peak memory", name, [found["peak"] / 1e9], "GB"))
            shown = ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items())
            total, imports = sum(steps.values()), found["seconds"]["import"]
            lines.append([name, f"{total:.1f} ({shown})", f"{imports:.1f}", f"{found['peak'] / 1e9:.2f}"])
    header = ["loader", "seconds", "imports, s", "peak memory, GB"]
    report.tell([report.Grid(task, header, lines)], rows, options.json)


if __name__ == "__main__":
    main()
