"""How large, how slow to write and how fast to read would the .beton files be? Measured on a sample of the images.

Each candidate setting converts the same few hundred images on one core, writes them to a temporary .beton and runs the
training loader over it with one thread. What is printed for the whole data set is a prediction from that, with its
error where the sample tells one.
"""

import dataclasses
import functools
import itertools
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from config.options import option, to_yaml
from config.text import format_bytes, format_duration
from conversion import beton
from conversion.encode import Refused, encode_all, encode_item, stored_bytes
from conversion.progress import progress
from conversion.sources import Source
from ffcv_ops import host
from ffcv_ops.errors import UserError

CANDIDATES = (  # changes of the --image keys
    {"max_side": 500},
    {"max_side": 500, "passthrough": False},
    {"max_side": 500, "passthrough": False, "quality": 80},
    {"max_side": 400},
    {"max_side": 320},
    {"max_side": 256},
    {"max_side": 500, "levels": (500, 256, 160)},
    {"max_side": 500, "mode": "raw"},
    {"max_side": 256, "mode": "raw"},
)
ENOUGH_SIDE, ENOUGH_QUALITY = 500, 90  # beyond these, training at 224 to 384 pixels sees no more of a photograph
ALIKE = 0.2  # differences of speed up to this are the machine's moods
CHECKSUM = 8  # bytes an image, in x.xxh64
SECONDS = 1.5  # of loading that is timed, for each candidate
BATCH = 32
LOW, LOW_LEAST = 128, 1.2  # the second loader column: low resolution, with stage.min_oversampling
TABLE_COLUMNS = 140  # where there is no terminal
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclasses.dataclass(frozen=True)
class PlanKeys:
    """--plan: what there is to put the files on and to read them with."""

    changes: ClassVar[str] = "records"

    disk: str = option("room for all splits: 500GB, 1.5TB; auto: what is free where they would go", default="auto")
    cores: int | Literal["auto"] = option(
        "that convert, and later load; auto: this machine's", low=1, high=100_000, default="auto"
    )
    read: str = option("what the disk gives in a second, where the data exceed the memory", default="2GB")
    images: int = option("how many are sampled", low=8, high=10**6, default=256)


class Row(NamedTuple):
    """What one candidate gave. Rates are images in a second of one core's time, which other programs and slow disks
    hardly change."""

    changes: dict
    size: float  # bytes an image
    size_error: float  # twice the standard error of `size`
    writing: float
    loading: float  # RRC 224 + 3-Augment
    loading_low: float  # RRC 128 + 3-Augment, stage.min_oversampling=1.2
    refused: int


def plan(source: Source, image, stage, keys: PlanKeys, *, out: Path, given: dict[str, str], page_size: int) -> str:
    """Prints the table; returns the advice with the command to run.

    image: the --image keys, of which the candidates change some; stage: the training stage whose loader is timed; out:
    where the files would go; given: the command line's keys and their texts."""
    disk = free_bytes(out.parent) if keys.disk == "auto" else bytes_of(keys.disk, "plan.disk")
    read = bytes_of(keys.read, "plan.read")
    cores = host.usable_cores() if keys.cores == "auto" else keys.cores
    counts = [len(split.items) for split in source.splits.values()]
    samples = sum(counts)
    rows = measured(source, image, stage, images=keys.images, page_size=page_size)
    sizes = [sum(total_bytes(row, count, page_size) for count in counts) for row in rows]
    speeds = [loads(row, size, cores=cores, read=read) for row, size in zip(rows, sizes, strict=True)]
    best = recommended(rows, image, sizes, speeds, disk)
    _print_table(rows, sizes, speeds, samples=samples, disk=disk, cores=cores, best=best)
    return _advice(rows, sizes, keys, best, samples=samples, disk=disk, cores=cores, given=given)


def _print_table(rows, sizes, speeds, *, samples, disk, cores, best):
    table = Table(title=f"Predicted: {samples:,} images, {format_bytes(disk)} of disk, {cores} cores")
    table.add_column("--image.", no_wrap=True)
    rates = "write/s", "224 px/s", f"224 px/s, {cores} cores", f"{LOW} px/s"
    for name in ("KB/image", "files", "fit", "writing", *rates):
        table.add_column(name, justify="right")
    for k, (row, size, speed) in enumerate(zip(rows, sizes, speeds, strict=True)):
        table.add_row(
            " ".join(word.removeprefix("--image.") for word in words_of(row.changes)),
            f"{row.size / 1e3:,.1f} ± {row.size_error / 1e3:,.1f}",
            f"{format_bytes(size)} ± {row.size_error / row.size:.0%}",
            "yes" if size <= disk else "no",
            format_duration(samples / (row.writing * cores)),
            f"{row.writing:,.0f}",
            f"{row.loading:,.0f}",
            f"{speed:,.0f}",
            f"{row.loading_low:,.0f}",
            style="bold" if k == best else None,
        )
    console = Console()
    (console if console.is_terminal else Console(width=TABLE_COLUMNS)).print(table)


def _advice(rows, sizes, keys, best, *, samples, disk, cores, given):
    refused = max(row.refused for row in rows)
    lines = [
        f"A prediction from {min(keys.images, samples):,} images, each converted and loaded here.",
        "files: all splits; the sample's mean, ± twice its standard error.",
        f"writing: by {cores} cores like this one, each at write/s; what disks need, and the reading back, add.",
        f"px/s: images/s of the loader on one core, random resized crop and 3-Augment; at {LOW} px with"
        f" stage.min_oversampling={LOW_LEAST}.",
        f"  {cores} cores load {cores} times as fast, but no more than {keys.read} a second where the files exceed this"
        " memory.",
    ]
    if refused:
        lines.append(f"{refused} of the sampled images cannot be stored; data.on_error=skip leaves such ones out.")
    if best is None:
        return "\n".join([*lines, f"Nothing fits into {format_bytes(disk)}; the least is {format_bytes(min(sizes))}."])
    changed = {"image.mode", "image.levels", *(f"image.{name}" for name in rows[best].changes)}
    kept = {name: text for name, text in given.items() if name not in changed and not name.startswith("plan.")}
    words = [shlex.quote(f"--{name}={text}") for name, text in kept.items()] + words_of(rows[best].changes)
    lines.append("Of what fits: the most detail, then the loader's speed (differences above 20 %), then the writer's:")
    return "\n".join([*lines, f"  python write_datasets.py {' '.join(words)}"])


def measured(source: Source, image, stage, *, images: int, page_size: int) -> list[Row]:
    """A row of each candidate."""
    items = _sample(source, images)
    image = dataclasses.replace(image, levels=None, mode="jpg")
    with tempfile.TemporaryDirectory() as folder, progress("plan", len(CANDIDATES), "settings") as one_more:
        rows = []
        for changes in CANDIDATES:
            rows.append(_measure(source, image, changes, items, stage, Path(folder), page_size))
            one_more()
    return rows


def _sample(source, count):
    """Items of all splits: as many equal stretches as items, one of each by a fixed draw."""
    splits = [split.items for split in source.splits.values()]
    ends = np.cumsum([len(items) for items in splits])
    count = min(count, int(ends[-1]))
    draws = np.random.default_rng(0).random(count)
    picked = ((np.arange(count) + draws) * ends[-1] / count).astype(np.int64)
    split_of = np.searchsorted(ends, picked, side="right")
    firsts = np.concatenate([[0], ends])
    return [splits[split][int(number - firsts[split])] for split, number in zip(split_of, picked, strict=True)]


def _measure(source, image, changes, items, stage, folder, page_size):
    settings = dataclasses.asdict(dataclasses.replace(image, **changes))
    encode = functools.partial(encode_item, read=source.read, **settings)
    encode_all(encode, items[:8])  # libraries are loaded and the first pages read
    began = time.process_time()
    results = encode_all(encode, items)
    seconds = time.process_time() - began
    samples = [result for result in results if not isinstance(result, Refused)]
    if len(samples) < 2:
        raise UserError(f"{len(samples)} of {len(items)} sampled images can be stored; there is nothing to plan")
    sizes = np.array([stored_bytes(sample) for sample in samples], float)
    path, levels = folder / "plan.beton", beton.level_fields(settings["levels"] or ())
    beton.write(path, ((sample, 0) for sample in samples), capacity=len(samples), page_size=page_size, images=levels)
    low = {"resolution": LOW, "min_oversampling": LOW_LEAST}
    return Row(
        changes=changes,
        size=float(sizes.mean()),
        size_error=2 * float(sizes.std(ddof=1)) / len(sizes) ** 0.5,
        writing=len(items) / seconds,
        loading=_loading(path, len(samples), stage, {}),
        loading_low=_loading(path, len(samples), stage, low),
        refused=len(items) - len(samples),
    )


def _loading(path, samples, stage, changes) -> float:
    """Images in a second of the training loader's processor time, after an epoch that is not timed."""
    from ffcv_ops.loader import Placement, train_loader  # torch and FFCV take seconds

    stage = dataclasses.replace(stage, batch=min(BATCH, samples), repeats=1, mixup=0.0, cutmix=0.0, **changes)
    loader = train_loader(path, samples, stage, seed=0, placement=Placement(workers=1))
    for _ in loader.epoch(0):
        pass
    began, seen = time.process_time(), 0
    for epoch in itertools.count(1):
        seen += sum(len(labels) for _, labels in loader.epoch(epoch))
        seconds = time.process_time() - began
        if seconds > SECONDS:
            return seen / seconds


def total_bytes(row: Row, samples: int, page_size: int) -> float:
    """Of a .beton of so many samples and its checksums: the index up to a full page, the images, the ends of pages that
    no image fills (half an image each; of smaller levels half a last page), the allocation table."""
    fields = beton.level_fields(row.changes.get("levels") or ())
    index = beton.metadata_start(fields) + samples * beton.sample_type(fields).itemsize
    unfilled = min(row.size / len(fields) / 2 / page_size, 0.5)
    table = samples * len(fields) * (beton.ALLOCATION.itemsize + CHECKSUM)
    ends = (len(fields) - 1) * page_size / 2
    return -(-index // page_size) * page_size + samples * row.size / (1 - unfilled) + ends + table


def loads(row: Row, size: float, *, cores: int, read: float) -> float:
    """Images/s of `cores`, no more than the disk gives where the file of `size` bytes exceeds the memory."""
    disk = read / row.size if size > psutil.virtual_memory().total else float("inf")
    return min(row.loading * cores, disk)


def recommended(rows: Sequence[Row], image, sizes: Sequence[float], speeds: Sequence[float], disk: float) -> int | None:
    """The number of the row to take. Of those that fit, those with the most detail (the longer side counts up to 500
    pixels, then the quality up to 90); of these, those that load at most ALIKE slower than the fastest; of these, JPEG
    before raw, and then what is written fastest. None: nothing fits."""

    def detail(k):
        changes = rows[k].changes
        quality = 100 if "mode" in changes else changes.get("quality", image.quality)
        return min(changes["max_side"], ENOUGH_SIDE), min(quality, ENOUGH_QUALITY)

    fitting = [k for k, size in enumerate(sizes) if size <= disk]
    if not fitting:
        return None
    best = [k for k in fitting if detail(k) == max(map(detail, fitting))]
    fast = [k for k in best if speeds[k] >= (1 - ALIKE) * max(speeds[other] for other in best)]
    return max(fast, key=lambda k: ("mode" not in rows[k].changes, rows[k].writing))


def bytes_of(text: str, name: str) -> float:
    """500GB -> 5e11."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?b|)", text.strip().lower())
    if not found:
        raise UserError(f"{name} is {text}; it must be a size such as 500GB or 1.5TB")
    return float(found[1]) * UNITS[found[2]]


def free_bytes(folder: Path) -> float:
    while not folder.is_dir():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def words_of(changes: dict) -> list[str]:
    """The options that give them; levels tell max_side."""
    levels = changes.get("levels")
    words = [f"--image.levels={','.join(map(str, levels))}"] if levels else []
    return words + [f"--image.{name}={to_yaml(value)}" for name, value in changes.items()
                    if name != "levels" and not (levels and name == "max_side")]  # fmt: skip
