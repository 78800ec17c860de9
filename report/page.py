"""report.html: one file that needs nothing else, neither scripts nor a network.

Everything in it that comes from a run, class names above all, goes through Jinja's escaping, and the page's own policy
forbids a browser to load or run anything.
"""

import base64
import datetime
import io
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from config.text import format_duration
from report import charts, collect, curves, tables
from report.collect import Facts
from report.colors import COLORS
from training.evaluation.predictions import Predictions

CONFUSIONS, CLASSES = 12, 8  # rows of the tables of mistakes
MATRIX = 100  # classes at most that the picture of all confusions shows
SLOW = 0.2  # share of an epoch's time that the loop may wait for data without a warning
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["colors"] = COLORS


class Tile(NamedTuple):
    """A number that is seen first."""

    value: str
    unit: str
    what: str
    note: str = ""


class Mistake(NamedTuple):
    """A picture that was taken for something else."""

    picture: str  # data URL
    true: str
    predicted: str
    confidence: float
    file: str  # "" where it is not known


def render(facts: Facts) -> str:
    """The page."""
    panels, stages = curves.panels(facts), curves.borders(facts)
    across = curves.span(facts, panels)
    predictions = facts.predictions
    return TEMPLATES.get_template("report.html").render(
        title=facts.name,
        facts=facts,
        state=state(facts),
        tiles=tiles(facts),
        deviations=collect.deviations(facts),
        warnings=warnings(facts),
        stages=tables.stage_table(facts),
        charts=[charts.chart(panel, across, stages) for panel in panels],
        confusions=tables.frequent_confusions(predictions, CONFUSIONS) if predictions else [],
        classes=tables.worst_classes(predictions, CLASSES) if predictions else [],
        confusion=confusion(predictions) if predictions else "",
        confidence=confidence(predictions) if predictions else "",
        mistakes=mistakes(predictions) if predictions else [],
        cost=cost(facts),
        environment=environment(facts),
    )


def state(facts: Facts) -> str:
    """Where the run stands, in one line."""
    last = facts.last
    if last is None:
        return "Begun; nothing logged yet"
    number = 1 + [stage.name for stage in facts.recipe.stages].index(last["stage"])
    stage = facts.recipe.stages[number - 1]
    epoch = last["epoch"] + (last["kind"] == "step")  # rows of log points count the epochs that are done
    where = f"Epoch {min(epoch, stage.epochs)} of {stage.epochs}, stage {number} of {len(facts.recipe.stages)}"
    when = f", {moment(last['at'])}" if "at" in last else ""
    return f"Finished{when}" if facts.finished else f"{where} ({stage.name}); last line of the log{when}"


def moment(seconds: float) -> str:
    """A time of day, the same on every machine."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def tiles(facts: Facts) -> list[Tile]:
    """Accuracy, then time, then speed."""
    found = []
    evaluated = [row for row in facts.epochs if "top1" in row]
    if evaluated:
        row = evaluated[-1]
        best = max(100 * other["top1"] for other in evaluated if other["stage"] == row["stage"])
        note = f"top-5 {100 * row['top5']:.2f} %, best of the stage {best:.2f} %"
        found.append(Tile(f"{100 * row['top1']:.2f}", "%", "top-1", note))
        if "balanced" in row:
            note = f"mean of the classes; always the largest class: top-1 {100 * row['majority']:.2f} %"
            found.append(Tile(f"{100 * row['balanced']:.2f}", "%", "balanced top-1", note))
    averaged = [row for row in facts.epochs if "ema_top1" in row]
    if averaged:
        row = averaged[-1]
        note = f"averaged weights, stage {row['stage']}"
        found.append(Tile(f"{100 * row['ema_top1']:.2f}", "%", "top-1, EMA", note))
    left, hours = collect.remaining(facts), collect.hours(facts)
    if left is not None:
        note = f"stage {format_duration(left.stage)}, {100 * left.done:.0f} % done"
        found.append(Tile(*_value_and_unit(left.run), "left", note))
    note = f"{hours * facts.environment.get('ranks', 1):,.2f} {_unit_of_cost(facts)}"
    found.append(Tile(*_value_and_unit(3600 * hours), "spent", note))
    if row := facts.last:
        note = f"waits for data {row['wait']:.1%}"
        found.append(Tile(f"{row['images_per_s']:,.0f}", "images/s", "speed", note))
    return found


def _value_and_unit(seconds) -> tuple[str, str]:
    """3 min 20 s -> (3, min 20 s)."""
    value, _, unit = format_duration(seconds).partition(" ")
    return value, unit


def _unit_of_cost(facts):
    gpu = facts.recipe.speed.device != "cpu" and "cuda" in facts.environment
    return "GPU-hours" if gpu else "process-hours on a CPU"


def warnings(facts: Facts) -> list[str]:
    """What went wrong, in sentences."""
    found = [f"{row['stage']}, step {row['step']}: {row['message']}" for row in facts.warnings]
    bad_steps = sum(row.get("bad_steps", 0) for row in facts.epochs)
    if bad_steps:
        found.append(f"{bad_steps} steps were left out because loss or gradient was not finite")
    bad_samples = sum(row.get("bad_samples", 0) for row in facts.epochs)
    if bad_samples:
        found.append(f"{bad_samples} samples could not be decoded and were replaced")
    # In a stage's first epoch files are not in memory yet and workers start: that it waits is no fault.
    slow = [row for row in facts.epochs if row["wait"] > SLOW and row["epoch"] > 1]
    if slow:
        found.append(
            f"in {len(slow)} of {len(facts.epochs)} epochs the training loop waited more than {SLOW:.0%} of the time"
            " for data"
        )
    if facts.predictions:
        every = tables.worst_classes(facts.predictions, len(facts.predictions.classes))
        never = [one.name for one in every if one.top1 == 0]
        if never:
            more = ", ..." if len(never) > CLASSES else ""
            found.append(f"{len(never)} classes have a top-1 of 0 %: {', '.join(never[:CLASSES])}{more}")
    if facts.damaged_lines:
        found.append(f"{facts.damaged_lines} damaged lines of log.jsonl are left out here")
    return found


def confidence(predictions: Predictions) -> str:
    """How sure the model is where it is right and where it is wrong."""
    right = predictions.labels == predictions.predicted
    parts = []
    for which, chosen in (("right", right), ("wrong", ~right)):
        if chosen.any():
            parts.append(f"{100 * predictions.confidence[chosen].mean():.0f} % sure where it is {which}")
    return f"{right.sum():,} of {len(right):,} images right; on average " + ", ".join(parts)


def mistakes(predictions: Predictions) -> list[Mistake]:
    """The kept pictures, the surest first."""
    names, labels, predicted = predictions.classes, predictions.labels, predictions.predicted
    files = predictions.files if len(predictions.files) else [""] * len(predictions.pictures)
    found = []
    for row, picture, file in zip(predictions.shown.tolist(), predictions.pictures, files, strict=True):
        true, other = str(names[labels[row]]), str(names[predicted[row]])
        found.append(Mistake(_data_url(picture), true, other, float(predictions.confidence[row]), str(file)))
    return found


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def confusion(predictions: Predictions) -> str:
    """The picture of all confusions, a data URL; "" where there are too many classes for one."""
    shares = tables.confusion_shares(predictions)
    if not 2 <= len(shares) <= MATRIX:
        return ""
    picture = charts.confusion_png(shares, predictions.classes[: len(shares)])
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def cost(facts: Facts) -> list[tuple[str, str, str]]:
    """What, so far, and at the end."""
    hours, left = collect.hours(facts), collect.remaining(facts)
    ranks = facts.environment.get("ranks", 1)
    training = sum(row["seconds"] for row in facts.epochs) / 3600
    images = sum(row["seconds"] * row["images_per_s"] for row in facts.epochs)
    total = hours + left.run / 3600 if left else hours
    batches = {stage.name: stage.batch for stage in facts.recipe.stages}
    planned = sum(plan.steps * batches[plan.stage] for plan in facts.plans)
    known = left is not None or facts.finished
    rows = [
        ("time", format_duration(3600 * hours), format_duration(3600 * total) if known else "-"),
        (_unit_of_cost(facts), f"{hours * ranks:,.2f}", f"{total * ranks:,.2f}" if known else "-"),
        ("of it training", f"{training / hours:.0%}" if hours else "-", ""),
        ("training images", f"{images:,.0f}", f"{planned:,}" if planned else "-"),
    ]
    if facts.last and "at" in facts.last:
        end = facts.last["at"] + (left.run if left else 0)
        rows.append(("clock", moment(facts.last["at"]), moment(end) if known else "-"))
    return rows


def environment(facts: Facts) -> list[tuple[str, str]]:
    """Name and value."""
    about = facts.environment
    if not about:
        return []
    names = ("commit", "python", "system", "cores", "memory", "ranks", "cuda")
    rows = [(name, str(about[name])) for name in names if name in about]
    devices = about.get("devices", [])
    counted = [f"{devices.count(name)} x {name}".removeprefix("1 x ") for name in dict.fromkeys(devices)]
    versions = [f"{name} {version}" for name, version in about.get("packages", {}).items()]
    return [*rows, ("devices", ", ".join(counted)), ("packages", ", ".join(versions))]
