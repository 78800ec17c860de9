"""What does a pyramid cost, and how near do its smaller levels come to the full one?

    python -m bench.levels [--quick] [--json FILE]

The photographs of bench/corpus.py, stored as `write_datasets.py --image.levels=500,256,160` stores them. Every view is
cut twice by Pillow's antialiased bicubic filter: from the full level, and from the smallest level whose part of it has
at least `min_oversampling` pixels for each pixel of the result, the same part to a fraction of a pixel. What is shown
are the views that come from a smaller level; the others are equal. PSNR is that of the mean square over all of them.
"""

import argparse
import io
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ffcv.libffcv import imdecode
from PIL import Image

from bench import corpus, report
from conversion.encode import LEVEL_SUBSAMPLING, ImageConfig, encode_item, encode_rgb
from conversion.rgb import limited, read_image
from ffcv_ops.errors import exits_cleanly
from ffcv_ops.kernels import crops
from ffcv_ops.rng import RandomKey

LEVELS = (500, 256, 160)
QUALITY = corpus.QUALITY
VIEWS = {"SRC": (96, 112, 128, 160, 192), "RRC": (96, 128, 160, 224)}
LEAST = (1.0, 1.2)  # pixels of the level for each pixel of the result, along the axis that has fewer
RRC_SCALE, RRC_DRAWS = (0.08, 1.0), 4
SETTINGS = [("4:2:0", 90), ("4:2:0", 95), ("4:4:4", 90), ("4:4:4", 95)]
SETTING_VIEWS = {256: ("SRC", 128), 160: ("SRC", 96)}
REPEATS = 7


class Stored(NamedTuple):
    """A level of one image: its bytes, and what Pillow decodes from them."""

    data: bytes
    pixels: Image.Image


def pyramids_of(files: list[Path]) -> list[list[Stored]]:
    """Of each file, its levels as write_datasets.py stores them."""
    config = ImageConfig(max_side=LEVELS[0], levels=LEVELS, quality=QUALITY, passthrough=False)
    return [[decoded(image.data) for image in encode_item(file, read=Path.read_bytes, image=config)] for file in files]


def one_level(files: list[Path], side: int, colour: str, quality: int) -> list[Stored]:
    """Of each file, one smaller level with other settings."""
    pixels = [limited(read_image(file), max_side=side) for file in files]
    return [decoded(encode_rgb(rgb, mode="jpg", quality=quality, subsampling=colour).data) for rgb in pixels]


def decoded(data: bytes) -> Stored:
    return Stored(data, Image.open(io.BytesIO(data)).convert("RGB"))


# --- views ---------------------------------------------------------------------------------------------------------


def views(crop: str, size: int, full: Image.Image, number: int) -> list[crops.View]:
    """SRC: the whole resized image, out of which training cuts its window. RRC: some boxes."""
    if crop == "SRC":
        return [crops.simple_random_crop(full.height, full.width, size, RandomKey(0, number))]
    draws = range(number * RRC_DRAWS, (number + 1) * RRC_DRAWS)
    return [crops.random_resized_crop(full.height, full.width, size, *RRC_SCALE, RandomKey(0, draw)) for draw in draws]


def downscale(view: crops.View, level: Image.Image, full: Image.Image) -> float:
    """Pixels of the level for each pixel of the result, along the axis that has fewer."""
    vertical = view.box_height * level.height / full.height / view.full_height
    return min(vertical, view.box_width * level.width / full.width / view.full_width)


def cut(view: crops.View, level: Image.Image, full: Image.Image) -> np.ndarray:
    """The box of `view`, whose pixels are those of `full`, out of `level`; nothing outside of it is touched."""
    down, right = level.height / full.height, level.width / full.width
    top, bottom = view.box_top * down, (view.box_top + view.box_height) * down
    left, end = view.box_left * right, (view.box_left + view.box_width) * right
    whole = (math.floor(left), math.floor(top), math.ceil(end - 1e-9), math.ceil(bottom - 1e-9))
    box = (left - whole[0], top - whole[1], min(end, whole[2]) - whole[0], min(bottom, whole[3]) - whole[1])
    size = (view.full_width, view.full_height)
    return np.asarray(level.crop(whole).resize(size, Image.Resampling.BICUBIC, box=box), np.float64)


class Difference(NamedTuple):
    """Of one view: the place of its level in the pyramid, mean absolute difference and mean square to the full one."""

    level: int
    absolute: float
    square: float


def compare(pyramid: list[Stored], crop: str, size: int, number: int, least: float) -> list[Difference]:
    """The views of one image that is number `number`; level 0 where no smaller one has enough pixels."""
    full, *smaller = (stored.pixels for stored in pyramid)
    found = []
    for view in views(crop, size, full, number):
        fit = [k for k, level in enumerate(smaller, 1) if downscale(view, level, full) >= least]
        if fit:
            error = cut(view, smaller[fit[-1] - 1], full) - cut(view, full, full)
            found.append(Difference(fit[-1], float(np.abs(error).mean()), float(np.square(error).mean())))
        else:
            found.append(Difference(0, 0.0, 0.0))
    return found


def psnr(square: float) -> float:
    return 10 * math.log10(255**2 / max(square, 1e-9))


# --- tables --------------------------------------------------------------------------------------------------------


def storage(pyramids):
    """What each level takes, and what decoding it costs beside the full one."""
    levels = list(zip(*pyramids, strict=True))
    total = sum(len(stored.data) for level in levels for stored in level)
    times = decoding_times(levels)
    rows, lines = [], []
    for side, level, seconds in zip(LEVELS, levels, times, strict=True):
        sizes = [len(stored.data) for stored in level]
        share = sum(sizes) / total
        rows += [report.row("storage", f"level-{side}", sizes, "bytes")]
        rows += [report.row("decoding", f"level-{side}", [1e6 * second for second in seconds], "us")]
        relative = np.median(seconds) / np.median(times[0])
        lines += [[str(side), f"{np.mean(sizes) / 1000:.1f}", f"{100 * share:.0f} %", f"{100 * relative:.0f} %"]]
    title = f"A pyramid, JPEG q{QUALITY}, smaller levels {LEVEL_SUBSAMPLING}"
    return rows, report.Grid(title, ["level", "KB an image", "of the file", "decoding, of the full level"], lines)


def decoding_times(sets) -> list[list[float]]:
    """Seconds an image in FFCV's JPEG decoder, of each set in turns, on one core."""
    times, room = [[] for _ in sets], np.empty(3 * LEVELS[0] ** 2, np.uint8)
    for _ in range(REPEATS):
        for stored, seconds in zip(sets, times, strict=True):
            sources = [(np.frombuffer(image.data, np.uint8), *image.pixels.size) for image in stored]
            began = time.perf_counter()
            for data, width, height in sources:
                imdecode(data, room, height, width, height, width)
            seconds.append((time.perf_counter() - began) / len(stored))
    return times


def quality(pyramids, least):
    rows, lines = [], []
    for crop, sizes in VIEWS.items():
        for size in sizes:
            parts = [compare(pyramid, crop, size, number, least) for number, pyramid in enumerate(pyramids)]
            row, line = summary(f"{crop} {size}", f"min-oversampling-{least}", [one for part in parts for one in part])
            rows += row
            lines.append(line)
    header = ["view", *(f"from {side}" for side in LEVELS[1:]), "mean difference", "PSNR", "lowest PSNR"]
    return rows, report.Grid(f"Views from smaller levels, min_oversampling {least}", header, lines)


def summary(task, name, differences):
    """JSON rows and a line of the table."""
    shares = [np.mean([one.level == k for one in differences]) for k in range(1, len(LEVELS))]
    reduced = [one for one in differences if one.level]
    if not reduced:
        return [], [task, *("-" for _ in shares), "-", "-", "-"]
    absolute, squares = [one.absolute for one in reduced], [one.square for one in reduced]
    mean, middle, lowest = float(np.mean(absolute)), psnr(float(np.mean(squares))), psnr(max(squares))
    rows = [
        report.row(task, name, absolute, "levels") | {"value": mean},
        report.row(task, name, [psnr(square) for square in squares], "dB") | {"value": middle},
    ]
    line = [f"{100 * share:.0f} %" for share in shares] + [f"{mean:.2f}", f"{middle:.1f} dB", f"{lowest:.1f} dB"]
    return rows, [task, *line]


def settings(files, pyramids):
    """Other ways of encoding smaller levels, each on the view that it is made for."""
    rows, lines, sets = [], [], {}
    for side in SETTING_VIEWS:
        for colour, strength in SETTINGS:
            sets[side, colour, strength] = one_level(files, side, colour, strength)
    times = decoding_times([[pyramid[0] for pyramid in pyramids], *sets.values()])
    for ((side, colour, strength), stored), seconds in zip(sets.items(), times[1:], strict=True):
        crop, size = SETTING_VIEWS[side]
        parts = [
            compare([p[0], one], crop, size, k, 1.0) for k, (p, one) in enumerate(zip(pyramids, stored, strict=True))
        ]
        reduced = [one for part in parts for one in part if one.level]
        mean, middle = np.mean([one.absolute for one in reduced]), psnr(float(np.mean([one.square for one in reduced])))
        size_kb = np.mean([len(one.data) for one in stored]) / 1000
        relative = np.median(seconds) / np.median(times[0])
        name = f"{side} {colour} q{strength}"
        rows += [report.row(f"{crop} {size}", name, [middle], "dB") | {"n": len(reduced)}]
        rows += [report.row("decoding", name, [1e6 * second for second in seconds], "us")]
        line = [f"{size_kb:.1f}", f"{100 * relative:.0f} %", f"{crop} {size}", f"{mean:.2f}", f"{middle:.1f} dB"]
        lines.append([name, *line])
    header = ["level", "KB an image", "decoding, of the full level", "view", "mean difference", "PSNR"]
    return rows, report.Grid("Other ways to encode smaller levels, min_oversampling 1.0", header, lines)


@exits_cleanly
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="24 photographs instead of 200")
    parser.add_argument("--json", type=Path, help="write the results here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus.write_images(Path(folder), {"train": 24 if options.quick else 200})
        files = sorted(Path(folder).rglob("*.jpg"))
        pyramids = pyramids_of(files)
        results = [storage(pyramids), *(quality(pyramids, least) for least in LEAST), settings(files, pyramids)]
    report.tell([grid for _, grid in results], [row for rows, _ in results for row in rows], options.json)


if __name__ == "__main__":
    sys.exit(main())
