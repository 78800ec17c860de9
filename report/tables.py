"""Tables of a run, for the console, Markdown and the page: rows of text, headings first."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from report.collect import Facts
from training.predictions import Predictions

COLUMNS = ("stage", "px", "epochs", "top-1 %", "top-5 %", "averaged top-1 %", "images/s", "waited for data", "minutes")


def stage_table(facts: Facts) -> list[tuple[str, ...]]:
    """One row for each stage that has finished an epoch."""
    rows = [COLUMNS]
    for stage in facts.run.stages:
        epochs = [row for row in facts.epochs if row["stage"] == stage.name]
        if not epochs:
            continue
        evaluated = [row for row in epochs if "top1" in row]
        seconds = max(sum(row["seconds"] for row in epochs), 1e-9)
        images = sum(row["seconds"] * row["images_per_s"] for row in epochs)
        rows.append(
            (
                stage.name, str(stage.resolution), f"{epochs[-1]['epoch']}/{stage.epochs}",
                *(percent(evaluated, key) for key in ("top1", "top5", "ema_top1")), f"{images / seconds:,.0f}",
                f"{sum(row['wait'] * row['seconds'] for row in epochs) / seconds:.1%}", f"{seconds / 60:.1f}",
            )
        )  # fmt: skip
    return rows


def percent(rows: Sequence[dict], key: str) -> str:
    """A share of the last of these rows in percent, "-" where it has none."""
    return f"{100 * rows[-1][key]:.2f}" if rows and key in rows[-1] else "-"


def padded(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, headings first, padded so that it also reads well on a console."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(lines)


class Pair(NamedTuple):
    """Images of one class that were taken for another."""

    true: str
    taken_for: str
    images: int
    share: float  # of the true class's images


class Class(NamedTuple):
    """How well a class is recognised."""

    name: str
    images: int
    top1: float
    mostly: str  # what its mistakes are most often taken for


def worst_pairs(made: Predictions, most: int) -> list[Pair]:
    """The most frequent mistakes, by number of images, then by share."""
    sizes = np.bincount(made.labels, minlength=len(made.classes))
    wrong = made.labels != made.predicted
    counted = Counter(zip(made.labels[wrong].tolist(), made.predicted[wrong].tolist(), strict=True))
    pairs = [
        Pair(str(made.classes[true]), str(made.classes[other]), images, images / sizes[true])
        for (true, other), images in counted.items()
    ]
    return sorted(pairs, key=lambda pair: (-pair.images, -pair.share, pair.true, pair.taken_for))[:most]


def worst_classes(made: Predictions, most: int) -> list[Class]:
    """The classes with the lowest top-1, of those that have images."""
    found = []
    for number, name in enumerate(made.classes):
        predicted = made.predicted[made.labels == number]
        if len(predicted):
            others = Counter(predicted[predicted != number].tolist()).most_common(1)
            mostly = str(made.classes[others[0][0]]) if others else "-"
            found.append(Class(str(name), len(predicted), float(np.mean(predicted == number)), mostly))
    return sorted(found, key=lambda one: (one.top1, one.name))[:most]
