"""report.html: one file that needs nothing else, neither scripts nor a network.

Everything in it that comes from a run, class names above all, goes through Jinja's escaping, and the page's own policy
forbids a browser to load or run anything.
"""

import base64
import datetime
import functools
import io
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from report import charts, collect, curves, tables
from report.collect import Facts
from training import progress

PAIRS, CLASSES = 12, 8  # rows of the tables of mistakes


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


def render(facts: Facts) -> str:
    """The page."""
    some, stages = curves.panels(facts), curves.borders(facts)
    across = curves.span(facts, some)
    made = facts.predictions
    return template("report.html").render(
        title=facts.name,
        facts=facts,
        model=facts.run.model.name,
        state=state(facts),
        tiles=tiles(facts),
        standings=collect.standings(facts),
        warnings=warnings(facts),
        stages=tables.stage_table(facts),
        charts=[charts.chart(panel, across, stages) for panel in some],
        pairs=tables.worst_pairs(made, PAIRS) if made else [],
        classes=tables.worst_classes(made, CLASSES) if made else [],
        sureness=sureness(made) if made else "",
        mistakes=mistakes(made) if made else [],
        cost=cost(facts),
        environment=environment(facts),
    )  # fmt: skip


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def template(name: str) -> jinja2.Template:
    """A page's template, with escaping on."""
    return _templates().get_template(name)


def state(facts: Facts) -> str:
    """Where the run stands, in one line."""
    last = facts.last
    if last is None:
        return "Begun; nothing logged yet"
    number = 1 + [stage.name for stage in facts.run.stages].index(last["stage"])
    stage = facts.run.stages[number - 1]
    where = f"Epoch {min(_epoch(last), stage.epochs)} of {stage.epochs}, stage {number} of {len(facts.run.stages)}"
    when = f", {moment(last['at'])}" if "at" in last else ""
    return f"Finished{when}" if facts.finished else f"{where} ({stage.name}); last line of the log{when}"


def _epoch(row):
    return row["epoch"] + (row["kind"] == "step")  # rows of log points count the epochs that are done


def moment(seconds: float) -> str:
    """A time of day, the same on every machine."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def tiles(facts: Facts) -> list[Tile]:
    """Accuracy, then speed, then time."""
    evaluated = [row for row in facts.epochs if "top1" in row]
    made = []
    if evaluated:
        row = evaluated[-1]
        best = max(100 * other["top1"] for other in evaluated if other["stage"] == row["stage"])
        note = f"top-5 {100 * row['top5']:.2f} %, best of the stage {best:.2f} %"
        made.append(Tile(f"{100 * row['top1']:.2f}", "%", "top-1", note))
    averaged = [row for row in facts.epochs if "ema_top1" in row]
    if averaged:
        row = averaged[-1]
        note = f"averaged weights, stage {row['stage']}"
        made.append(Tile(f"{100 * row['ema_top1']:.2f}", "%", "top-1, EMA", note))
    left, spent = collect.remaining(facts), collect.hours(facts)
    if left is not None:
        note = f"stage {progress.words(left.stage)}, {100 * left.done:.0f} % done"
        made.append(Tile(*_split(progress.words(left.run)), "left", note))
    made.append(Tile(*_split(progress.words(3600 * spent)), "spent", _devices(facts, spent)))
    if facts.last:
        row = facts.last
        made.append(Tile(f"{row['images_per_s']:,.0f}", "images/s", "speed", f"waits for data {row['wait']:.1%}"))
    return made


def _split(words: str) -> tuple[str, str]:
    """3 min 20 s -> (3, min 20 s)."""
    value, _, unit = words.partition(" ")
    return value, unit


def _devices(facts, hours):
    ranks = facts.environment.get("ranks", 1)
    return f"{hours * ranks:,.2f} {_unit(facts)}"


def _unit(facts):
    gpu = facts.run.speed.device != "cpu" and "cuda" in facts.environment
    return "GPU-hours" if gpu else "process-hours on a CPU"


def warnings(facts: Facts) -> list[str]:
    """What went wrong, in sentences."""
    said = [f"{row.get('stage', '')}, step {row.get('step', '?')}: {row.get('said', '')}" for row in facts.warnings]
    bad_steps = sum(row.get("bad_steps", 0) for row in facts.epochs)
    if bad_steps:
        said.append(f"{bad_steps} steps were left out because loss or gradient was no number")
    bad_samples = sum(row.get("bad_samples", 0) for row in facts.epochs)
    if bad_samples:
        said.append(f"{bad_samples} samples could not be decoded and were replaced")
    slow = [row for row in facts.epochs if row["wait"] > 0.2]
    if slow:
        said.append(
            f"in {len(slow)} of {len(facts.epochs)} epochs the training loop waited more than 20 % of the time for data"
        )
    return said


def sureness(made) -> str:
    """How sure the model is where it is right and where it is wrong."""
    right = made.labels == made.predicted
    parts = []
    for which, chosen in (("right", right), ("wrong", ~right)):
        if chosen.any():
            parts.append(f"{100 * made.confidence[chosen].mean():.0f} % sure where it is {which}")
    return f"{right.sum():,} of {len(right):,} images right; on average " + ", ".join(parts)


def mistakes(made) -> list[Mistake]:
    """The kept pictures, the surest first."""
    return [
        Mistake(_data_url(picture), str(made.classes[made.labels[row]]), str(made.classes[made.predicted[row]]),
                float(made.confidence[row]))
        for row, picture in zip(made.shown.tolist(), made.pictures, strict=True)
    ]  # fmt: skip


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def cost(facts: Facts) -> list[tuple[str, str, str]]:
    """What, so far, and at the end."""
    spent, left = collect.hours(facts), collect.remaining(facts)
    ranks = facts.environment.get("ranks", 1)
    training = sum(row["seconds"] for row in facts.epochs) / 3600
    images = sum(row["seconds"] * row["images_per_s"] for row in facts.epochs)
    whole = spent + left.run / 3600 if left else spent
    planned = sum(len(part.work) * part.steps * _batch(facts, part) for part in facts.parts)
    known = left is not None or facts.finished
    rows = [
        ("time", progress.words(3600 * spent), progress.words(3600 * whole) if known else "-"),
        (_unit(facts), f"{spent * ranks:,.2f}", f"{whole * ranks:,.2f}" if known else "-"),
        ("of it training", f"{training / spent:.0%}" if spent else "-", ""),
        ("training images", f"{images:,.0f}", f"{planned:,}" if planned else "-"),
    ]
    if facts.last and "at" in facts.last:
        end = facts.last["at"] + (left.run if left else 0)
        rows.append(("clock", moment(facts.last["at"]), moment(end) if known else "-"))
    return rows


def _batch(facts, part):
    return next(stage.batch for stage in facts.run.stages if stage.name == part.stage)


def environment(facts: Facts) -> list[tuple[str, str]]:
    """Name and value."""
    about = facts.environment
    rows = [(name, str(about[name])) for name in ("commit", "python", "system", "cores", "memory", "ranks", "cuda")
            if name in about]  # fmt: skip
    devices = about.get("devices", [])
    counted = [f"{devices.count(name)} x {name}".removeprefix("1 x ") for name in dict.fromkeys(devices)]
    versions = [f"{name} {version}" for name, version in about.get("packages", {}).items()]
    return [*rows, ("devices", ", ".join(counted)), ("packages", ", ".join(versions))] if about else []
