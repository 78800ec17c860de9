"""Tables of a run, for the console, Markdown and the page: rows of text, headings first."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from config.text import format_duration
from report import collect
from report.collect import Facts
from training.evaluation.predictions import Predictions

STAGES = ("stage", "px", "epochs", "top-1 %", "top-5 %", "EMA top-1 %", "images/s", "waited", "minutes")
RUNS = ("run", "epochs", "top-1 %", "best top-1 %", "EMA top-1 %", "val loss", "images/s", "waited", "time")


def stage_table(facts: Facts) -> list[tuple[str, ...]]:
    """One row for each stage that has finished an epoch."""
    rows = [STAGES]
    for stage in facts.recipe.stages:
        epochs = [row for row in facts.epochs if row["stage"] == stage.name]
        if epochs:
            seconds = sum(row["seconds"] for row in epochs)
            accuracies = (_last_percent(epochs, key) for key in ("top1", "top5", "ema_top1"))
            done = f"{epochs[-1]['epoch']}/{stage.epochs}"
            rows.append((stage.name, str(stage.resolution), done, *accuracies, *_speed(epochs), f"{seconds / 60:.1f}"))
    return _filled(rows)


def run_table(runs: Sequence[Facts]) -> list[tuple[str, ...]]:
    """One row for each run: its last numbers, of the stage that it has come to."""
    rows = [RUNS]
    for facts in runs:
        evaluated = [row for row in facts.epochs if "top1" in row]
        in_stage = [row for row in evaluated if row["stage"] == evaluated[-1]["stage"]]
        rows.append(
            (
                facts.name,
                f"{len(facts.epochs)}/{sum(stage.epochs for stage in facts.recipe.stages)}",
                _last_percent(evaluated, "top1"),
                f"{100 * max(row['top1'] for row in in_stage):.2f}" if in_stage else "-",
                _last_percent(facts.epochs, "ema_top1"),
                f"{evaluated[-1]['val_loss']:.4f}" if evaluated else "-",
                *_speed(facts.epochs),
                format_duration(3600 * collect.hours(facts)),
            )
        )
    return _filled(rows)


def _filled(rows):
    """Without the columns that have a heading and nothing else; most runs have no EMA."""
    kept = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"-"}]
    return list(zip(*kept, strict=True))


def _last_percent(rows, key):
    """The last share of that name in percent, "-" where there is none."""
    found = [row[key] for row in rows if key in row]
    return f"{100 * found[-1]:.2f}" if found else "-"


def _speed(rows):
    """Images per second and the share of the time that was waited for data, over these epochs."""
    seconds = max(sum(row["seconds"] for row in rows), 1e-9)
    images = sum(row["seconds"] * row["images_per_s"] for row in rows)
    waited = sum(row["seconds"] * row["wait"] for row in rows)
    return f"{images / seconds:,.0f}", f"{waited / seconds:.1%}"


class Confusion(NamedTuple):
    """Images of one class that were taken for another."""

    true: str
    taken_for: str
    images: int
    share: float  # of the true class's images


def confusion_shares(predictions: Predictions) -> np.ndarray:
    """float64 (classes, classes): of each true class's images the share that is taken for each class; rows of classes
    without images are 0."""
    classes = len(predictions.classes)
    pairs = predictions.labels * classes + predictions.predicted
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


class ClassAccuracy(NamedTuple):
    """How well a class is recognized."""

    name: str
    images: int
    top1: float
    mostly: str  # what its mistakes are most often taken for


def frequent_confusions(predictions: Predictions, most: int) -> list[Confusion]:
    """The most frequent mistakes, by number of images, then by share."""
    names, labels, predicted = predictions.classes, predictions.labels, predictions.predicted
    sizes = np.bincount(labels, minlength=len(names))
    wrong = labels != predicted
    counted = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    found = [
        Confusion(str(names[true]), str(names[other]), images, images / sizes[true])
        for (true, other), images in counted.items()
    ]
    return sorted(found, key=lambda one: (-one.images, -one.share, one.true, one.taken_for))[:most]


def worst_classes(predictions: Predictions, most: int) -> list[ClassAccuracy]:
    """The classes with the lowest top-1, of those that have images."""
    found = []
    for number, name in enumerate(predictions.classes):
        predicted = predictions.predicted[predictions.labels == number]
        if len(predicted):
            others = Counter(predicted[predicted != number].tolist()).most_common(1)
            mostly = str(predictions.classes[others[0][0]]) if others else "-"
            found.append(ClassAccuracy(str(name), len(predicted), float(np.mean(predicted == number)), mostly))
    return sorted(found, key=lambda one: (one.top1, one.name))[:most]
