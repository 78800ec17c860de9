"""Writing .beton files: images/s, bytes and peak memory of our writer and of stock FFCV's `DatasetWriter`.

Both convert the same folder of JPEGs (bench/dataset.py) with the same limit on the longer side, JPEG quality and number
of processes, interleaved, each in a new process. Timed is the conversion, from the list of files to the synced file
(ours: read back and described as well), without imports. Peak memory is what all its processes take together, shared
pages counted once (PSS).

    python -m bench.write --json bench/results/write.json       # about 15 minutes, 10 GB of disk
    python -m bench.write --quick                               # does it work?
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import dataset, machine, report
from bench.writers import TASKS, WRITERS
from config.parser import Parser
from ffcv_ops import host
from ffcv_ops.errors import UserError, exits_cleanly

IMAGES = 4000  # that differ; the rest are other names of them, since making an image takes longer than converting it
ROUNDS = 5
SECONDS_BETWEEN_LOOKS = 0.1  # at the memory


def measure(writer: str, task: str, images: Path, folder: Path, workers: int) -> dict[str, float]:
    """One conversion in a process of its own."""
    out = folder / "x_train.beton"
    command = [sys.executable, "-m", "bench.writers", writer, task, str(images), str(out), str(workers)]
    process = subprocess.Popen(command, cwd=dataset.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, machine.proportional_set_size(process.pid))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    said, errors = process.communicate()
    if process.returncode:
        raise UserError(f"{writer} failed at {task}: {(errors.strip().splitlines() or ['no word'])[-1]}")
    size = dataset.stored_bytes(out)
    for file in folder.iterdir():
        file.unlink()
    return {"seconds": json.loads(said.splitlines()[-1]), "bytes": size, "memory": peak}


def linked(images: Path, folder: Path, count: int) -> Path:
    """A folder of so many names of the images."""
    files = sorted(images.rglob("*.jpg"))
    for number in range(count):
        file = files[number % len(files)]
        name = folder / file.relative_to(images).with_name(f"{file.stem}-{number // len(files)}.jpg")
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, name)
    return folder


def rows_of(results, count):
    rows = []
    for (task, writer), runs in results.items():
        rows += [
            report.row(task, writer, [count / run["seconds"] for run in runs], "images/s"),
            report.row(task, writer, [run["bytes"] / count for run in runs], "bytes/image"),
            report.row(task, writer, [run["memory"] / 1e6 for run in runs], "MB"),
        ]
    for task in dict.fromkeys(task for task, _ in results):
        pairs = zip(results[task, "ours"], results[task, "ffcv"], strict=True)
        ratios = [theirs["seconds"] / mine["seconds"] for mine, theirs in pairs]
        rows.append(report.row(task, "ours / ffcv", ratios, "x"))
    return rows


def grid_of(rows) -> report.Grid:
    found = {(row["task"], row["name"], row["unit"]): row for row in rows}
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for writer in WRITERS:
            speed, size, memory = (found[task, writer, unit] for unit in ("images/s", "bytes/image", "MB"))
            shown = f"{size['value'] / 1000:.1f}", f"{memory['value']:,.0f}"
            lines.append([f"{task}: {writer}", report.spread(speed), *shown])
        ratio = found[task, "ours / ffcv", "x"]
        lines.append([f"{task}: ours / ffcv", report.spread(ratio, ".2f"), "", ""])
    return report.Grid("Writing", ["", "images/s", "KB/image", "peak memory, MB"], lines)


@exits_cleanly
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--quick", action="store_true", help="200 images, one round")
    parser.add_argument("--json", type=Path, help="write the results here too")
    options = parser.parse_args()
    count, rounds = (200, 1) if options.quick else (options.images, ROUNDS)
    results = {(task, writer): [] for task in TASKS for writer in WRITERS}
    with tempfile.TemporaryDirectory() as folder:
        folder, made, out = Path(folder), Path(folder) / "made", Path(folder) / "out"
        dataset.write_images(made, {"train": min(count, IMAGES)})
        images = linked(made, folder / "images", count)
        out.mkdir()
        for round_ in range(rounds):
            for task in TASKS:
                for writer in list(WRITERS)[:: 1 if round_ % 2 else -1]:
                    results[task, writer].append(measure(writer, task, images, out, host.usable_cores()))
    rows = rows_of(results, count)
    report.tell([grid_of(rows)], rows, options.json)


if __name__ == "__main__":
    main()
