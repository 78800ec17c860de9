"""What is written down of evaluations: rows of evaluations.json, a table of them, and a CSV file by class for each.

A row: weights, model, data, labels (own or ReaL), classes (of the model's, among which it chose), images, resolution,
crop, flip, precision, top1, top5, balanced (mean of the classes' top-1) and majority (the largest class) as shares,
loss (nats; none for ReaL), by_class (the name of its CSV file).
"""

import csv
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from config.text import markdown_table
from ffcv_ops.errors import UserError
from ffcv_ops.files import read_regular, write_atomically
from training.logging.records import write_json

FILE = "evaluations.json"
_COLUMNS = ("data", "labels", "classes", "images", "px", "crop", "top-1 %", "top-5 %", "loss")
_SETTINGS = ("weights", "data", "labels", "resolution", "crop", "flip", "precision")
_FIELDS = {*_SETTINGS, "classes", "images", "top1", "top5", "loss"}  # by_class is younger than some files


def table(rows: Sequence[dict]) -> str:
    """A Markdown table of rows."""
    cells = (
        (
            Path(row["data"]).stem,
            row["labels"],
            f"{row['classes']:,}",
            f"{row['images']:,}",
            str(row["resolution"]),
            f"{row['crop']:g}{' + mirror' if row['flip'] else ''}",
            f"{100 * row['top1']:.3f}",
            f"{100 * row['top5']:.3f}",
            "-" if row["loss"] is None else f"{row['loss']:.4f}",
        )
        for row in rows
    )
    return markdown_table([_COLUMNS, *cells])


def read(folder: Path) -> list[dict]:
    """The evaluations that a folder keeps."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        rows = json.loads(read_regular(path))
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= _FIELDS for row in rows):
            raise ValueError("a row lacks what an evaluation has")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a list of evaluations ({error}); delete it") from error
    return rows


def others(folder: Path, rows: Sequence[dict]) -> list[dict]:
    """The folder's evaluations without those that `rows` replace: of the same weights, data and settings."""
    new = {_settings(row) for row in rows}
    return [row for row in read(folder) if _settings(row) not in new]


def write(folder: Path, rows: Sequence[dict]) -> None:
    """Adds `rows` to the folder's evaluations, in place of older ones of the same."""
    write_json(folder / FILE, [*others(folder, rows), *rows], indent=1)


def _settings(row):
    return tuple(row.get(name) for name in _SETTINGS)


def write_by_class(path: Path, names: Sequence[str], by_class: Tensor) -> None:
    """A CSV line for each class: shares of its images, empty where it has none. `by_class`: as in `Accuracy`."""

    def write(temporary):
        with temporary.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("class", "images", "top1", "top5"))
            for name, (top1, top5, images) in zip(names, by_class.tolist(), strict=True):
                shares = (f"{top1 / images:.6f}", f"{top5 / images:.6f}") if images else ("", "")
                lines.writerow((name, images, *shares))

    write_atomically(path, write)


def name_by_class(row: dict, taken: set[str]) -> str:
    """A name for the file by class of an evaluation, which is none of those `taken`: they are other evaluations'."""
    of = "model" if Path(row["weights"]).is_dir() else Path(row["weights"]).stem
    how = f"{row['resolution']}px" + (f"_crop{row['crop']:g}" if row["crop"] != 1 else "")
    how += "_mirror" if row["flip"] else ""
    stem = re.sub(r"[^\w.-]", "_", f"by_class_{Path(row['data']).stem}_{row['labels']}_{of}_{how}")
    numbered = itertools.chain([f"{stem}.csv"], (f"{stem}_{number}.csv" for number in itertools.count(2)))
    return next(name for name in numbered if name not in taken)
