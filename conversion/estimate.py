"""An estimate, from a sample of the images, of how large the .beton files get, and how fast they are written and read.

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

from config.loading import train_options
from config.options import option, to_yaml
from config.text import format_bytes, format_duration
from conversion import beton
from conversion.encode import ImageConfig, Refused, encode_item, encode_or_refuse, stored_images
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
NOISE = 0.2  # differences of speed up to this are noise of the machine
SECONDS = 1.5  # of loading that is timed, for each candidate
BATCH = 32
LOW_RESOLUTION, LOW_OVERSAMPLING = 128, 1.2  # the second loader column
TABLE_WIDTH = 140  # where there is no terminal
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclasses.dataclass(frozen=True)
class EstimateConfig:
    """--estimate: what there is to put the files on and to read them with."""

    changes: ClassVar[str] = "records"

    disk: str = option("room for all splits: 500GB, 1.5TB; auto: what is free where they would go", default="auto")
    cores: int | Literal["auto"] = option(
        "that convert, and later load; auto: this machine's", low=1, high=100_000, default="auto"
    )
    read: str = option("what the disk gives in a second, where the data exceed the memory", default="2GB")
    images: int = option("how many are sampled", low=8, high=10**6, default=256)


class Row(NamedTuple):
    """The measurements of one candidate. Rates are images in a second of one core's time, which other programs and slow
    disks hardly change."""

    changes: dict
    size: float  # bytes an image
    size_error: float  # twice the standard error of `size`
    writing: float
    loading: float  # RRC 224 + 3-Augment
    loading_low: float  # RRC 128 + 3-Augment, stage.min_oversampling=1.2
    refused: int


class Estimate(NamedTuple):
    """The prediction for the whole data set, by candidate: bytes of all files, and images/s of all cores. best: the
    number of the recommended one, or None; disk: bytes that there are."""

    rows: list[Row]
    sizes: list[float]
    speeds: list[float]
    best: int | None
    samples: int
    disk: float
    cores: int


def estimate(
    source: Source,
    image: ImageConfig,
    stage,
    config: EstimateConfig,
    *,
    out: Path,
    overrides: dict[str, str],
    page_size: int,
) -> str:
    """Prints the table; returns the advice with the command to run.

    image: the options that the candidates change; stage: the training stage whose loader is timed; out: where the files
    would go; overrides: the command line's options as text; page_size: bytes."""
    disk = free_bytes(out.parent) if config.disk == "auto" else bytes_of(config.disk, "estimate.disk")
    read = bytes_of(config.read, "estimate.read")
    cores = host.usable_cores() if config.cores == "auto" else config.cores
    counts = [len(split.items) for split in source.splits.values()]
    rows = measure(source, image, stage, images=config.images, page_size=page_size)
    sizes = [sum(total_bytes(row, count, page_size) for count in counts) for row in rows]
    speeds = [loading_speed(row, size, cores=cores, read=read) for row, size in zip(rows, sizes, strict=True)]
    found = Estimate(rows, sizes, speeds, recommended(rows, image, sizes, speeds, disk), sum(counts), disk, cores)
    _print_table(found)
    return _advice(found, config, overrides)


def _print_table(found: Estimate):
    cores = found.cores
    table = Table(title=f"Predicted: {found.samples:,} images, {format_bytes(found.disk)} of disk, {cores} cores")
    table.add_column("--image.", no_wrap=True)
    rates = "write/s", "224 px/s", f"224 px/s, {cores} cores", f"{LOW_RESOLUTION} px/s"
    for name in ("KB/image", "files", "fit", "writing", *rates):
        table.add_column(name, justify="right")
    for k, (row, size, speed) in enumerate(zip(found.rows, found.sizes, found.speeds, strict=True)):
        table.add_row(
            " ".join(word.removeprefix("--image.") for word in words_of(row.changes)),
            f"{row.size / 1e3:,.1f} ± {row.size_error / 1e3:,.1f}",
            f"{format_bytes(size)} ± {row.size_error / row.size:.0%}",
            "yes" if size <= found.disk else "no",
            format_duration(found.samples / (row.writing * cores)),
            f"{row.writing:,.0f}",
            f"{row.loading:,.0f}",
            f"{speed:,.0f}",
            f"{row.loading_low:,.0f}",
            style="bold" if k == found.best else None,
        )
    console = Console()
    (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(table)


def _advice(found: Estimate, config, overrides):
    refused, cores = max(row.refused for row in found.rows), found.cores
    lines = [
        f"A prediction from {min(config.images, found.samples):,} images, each converted and loaded here.",
        "files: all splits; the sample's mean, ± twice its standard error.",
        f"writing: by {cores} cores like this one, each at write/s; what disks need, and the reading back, add.",
        f"px/s: images/s of the loader on one core, random resized crop and 3-Augment; at {LOW_RESOLUTION} px with"
        f" stage.min_oversampling={LOW_OVERSAMPLING}.",
        f"  {cores} cores load {cores} times as fast, but no more than {config.read} a second where the files exceed"
        " this memory.",
    ]
    if refused:
        lines.append(f"{refused} of the sampled images cannot be stored; data.on_error=skip leaves such ones out.")
    if found.best is None:
        smallest = format_bytes(min(found.sizes))
        return "\n".join([*lines, f"Nothing fits into {format_bytes(found.disk)}; the least is {smallest}."])
    changes = found.rows[found.best].changes
    changed = {"image.mode", "image.levels", *(f"image.{name}" for name in changes)}
    unchanged = {
        name: text for name, text in overrides.items() if name not in changed and not name.startswith("estimate.")
    }
    words = [shlex.quote(f"--{name}={text}") for name, text in unchanged.items()] + words_of(changes)
    lines.append("Of what fits: the most detail, then the loader's speed (differences above 20 %), then the writer's:")
    return "\n".join([*lines, f"  python write_datasets.py {' '.join(words)}"])


def measure(source: Source, image: ImageConfig, stage, *, images: int, page_size: int) -> list[Row]:
    """A row of each candidate."""
    items = _sample(source, images)
    image = dataclasses.replace(image, levels=None, mode="jpg")
    with tempfile.TemporaryDirectory() as folder, progress("estimate", len(CANDIDATES), "settings") as advance:
        rows = []
        for changes in CANDIDATES:
            rows.append(_measure(source, image, changes, items, stage, Path(folder), page_size))
            advance()
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
    image = dataclasses.replace(image, **changes)
    encode = functools.partial(encode_item, read=source.read, image=image)
    for item in items[:8]:
        encode_or_refuse(encode, item)  # libraries are loaded and the first pages read
    began = time.process_time()
    results = [encode_or_refuse(encode, item) for item in items]
    seconds = time.process_time() - began
    samples = [result for result in results if not isinstance(result, Refused)]
    if len(samples) < 2:
        raise UserError(f"{len(samples)} of {len(items)} sampled images can be stored; there is nothing to estimate")
    sizes = np.array([sum(len(image.data) for image in stored_images(sample)) for sample in samples], float)
    path, fields = folder / "estimate.beton", beton.level_fields(image.levels or ())
    beton.write(path, ((sample, 0) for sample in samples), capacity=len(samples), page_size=page_size, images=fields)
    low = {"resolution": LOW_RESOLUTION, "min_oversampling": LOW_OVERSAMPLING}
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
    from ffcv_ops.loader import train_loader  # torch and FFCV take seconds

    stage = dataclasses.replace(stage, batch=min(BATCH, samples), repeats=1, mixup=0.0, cutmix=0.0, **changes)
    loader = train_loader(path, workers=1, **train_options(stage))
    for _ in loader.epoch(0):
        pass
    began, seen = time.process_time(), 0
    for epoch in itertools.count(1):
        seen += sum(len(labels) for _, labels in loader.epoch(epoch))
        seconds = time.process_time() - began
        if seconds > SECONDS:
            return seen / seconds


def total_bytes(row: Row, samples: int, page_size: int) -> float:
    """Bytes of a .beton of so many samples and of its checksums."""
    # The index up to a full page, the images, the ends of pages that no image fills (half an image each; of smaller
    # levels half a last page), the allocation table.
    fields = beton.level_fields(row.changes.get("levels") or ())
    index = beton.metadata_start(fields) + samples * beton.sample_type(fields).itemsize
    unfilled = min(row.size / len(fields) / 2 / page_size, 0.5)
    table = samples * len(fields) * (beton.ALLOCATION.itemsize + beton.CHECKSUM.itemsize)
    ends = (len(fields) - 1) * page_size / 2
    return -(-index // page_size) * page_size + samples * row.size / (1 - unfilled) + ends + table


def loading_speed(row: Row, size: float, *, cores: int, read: float) -> float:
    """Images/s of `cores`, and no more than the disk gives (`read` bytes/s) where `size` bytes exceed the memory."""
    from_disk = read / row.size if size > psutil.virtual_memory().total else float("inf")
    return min(row.loading * cores, from_disk)


def recommended(rows: Sequence[Row], image, sizes: Sequence[float], speeds: Sequence[float], disk: float) -> int | None:
    """The number of the row to take. Of those that fit, those with the most detail (the longer side counts up to 500
    pixels, then the quality up to 90); of these, those that load at most NOISE slower than the fastest; of these, JPEG
    before raw, and then what is written fastest. None: nothing fits."""

    def detail(k):
        changes = rows[k].changes
        quality = 100 if "mode" in changes else changes.get("quality", image.quality)
        return min(changes["max_side"], ENOUGH_SIDE), min(quality, ENOUGH_QUALITY)

    fitting = [k for k, size in enumerate(sizes) if size <= disk]
    if not fitting:
        return None
    best = [k for k in fitting if detail(k) == max(map(detail, fitting))]
    fast = [k for k in best if speeds[k] >= (1 - NOISE) * max(speeds[other] for other in best)]
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
    """The command line's words for a candidate."""
    given = {name: to_yaml(value) for name, value in changes.items()}
    if "levels" in changes:
        given["levels"] = ",".join(map(str, changes["levels"]))
        del given["max_side"]  # it is the first of the levels
    return [f"--image.{name}={text}" for name, text in given.items()]
