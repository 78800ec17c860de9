"""What the curves of a run show: rows of its log -> panels of lines over the epochs of all stages.

Epochs are counted from the first stage in the log. Points of log points lie within their epoch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from report.collect import Facts

Points = list[tuple[float, float]]
FAINT_POINTS = 400  # of a line of log points, about, at most; more are averaged
LARGEST = 1e30  # values beyond are not drawn: axes cannot show them beside others


class Line(NamedTuple):
    """A curve, in one stroke for each stage. `kind`: main, second, published, faint, or run1 to run8 (colors.py)."""

    label: str
    kind: str
    strokes: list[Points]

    @property
    def points(self) -> Points:
        return [point for stroke in self.strokes for point in stroke]

    def within(self, across: tuple[float, float]) -> "Line":
        """What of it lies between two epochs."""
        inside = ([point for point in stroke if across[0] <= point[0] <= across[1]] for stroke in self.strokes)
        return self._replace(strokes=[stroke for stroke in inside if stroke])


class Panel(NamedTuple):
    """One coordinate system."""

    key: str
    title: str
    unit: str
    form: str  # how a value is written
    from_zero: bool
    lines: list[Line]

    def within(self, across: tuple[float, float]) -> "Panel":
        """What of its lines lies between two epochs."""
        return self._replace(lines=[line.within(across) for line in self.lines])


class Border(NamedTuple):
    """Where a stage begins and ends, in epochs."""

    stage: str
    start: float
    end: float


SCALES = {  # key of a row -> title, unit, factor, how a value is written, whether the axis begins at 0
    "top1": ("Top-1 on validation", "%", 100, ".2f", False),
    "loss": ("Training loss", "nats", 1, ".4g", False),
    "val_loss": ("Validation loss (cross-entropy)", "nats", 1, ".4g", False),
    "lr": ("Learning rate", "learning rate", 1, ".3g", True),
    "resolution": ("Training resolution", "px", 1, ".0f", True),
    "images_per_s": ("Training speed", "images/s", 1, ",.0f", True),
    "wait": ("Waiting for data", "% of the time", 100, ".1f", True),
    "grad_norm": ("Gradient norm", "norm", 1, ".3g", True),
}
OF_STEPS = ("loss", "lr", "images_per_s", "wait", "grad_norm")  # what log points tell too


def borders(facts: Facts) -> list[Border]:
    """The stages in the log; the last one ends where it is planned to."""
    names = {row["stage"] for row in (*facts.epochs, *facts.steps)}
    found, start = [], 0.0
    for stage in facts.recipe.stages:
        if stage.name in names:
            found.append(Border(stage.name, start, start + stage.epochs))
            start += stage.epochs
    return found


def panels(facts: Facts) -> list[Panel]:
    """All panels that have something to show."""
    stages = borders(facts)
    if not stages:
        return []
    made = [
        Panel(key, title, unit, form, from_zero, _lines(facts, stages, key, factor))
        for key, (title, unit, factor, form, from_zero) in SCALES.items()
    ]
    return [panel for panel in made if panel.lines]


def _lines(facts, stages, key, factor):
    lines = []
    if key in OF_STEPS:
        lines.append(Line("", "faint", _of_steps(facts, stages, key, factor)))
    strokes = _of_epochs(facts, stages, key, factor)
    if key == "resolution":  # constant within an epoch
        strokes = [[(x - before, y) for x, y in stroke for before in (1, 0)] for stroke in strokes]
    lines.append(Line("raw weights" if key == "top1" else "", "main", strokes))
    if key == "top1":
        lines.append(Line("averaged weights (EMA)", "second", _of_epochs(facts, stages, "ema_top1", factor)))
        for stage in stages:
            if curve := facts.reference_curves.get(stage.stage):
                points = [(stage.start + epoch, top1) for epoch, top1 in zip(curve.epochs, curve.top1, strict=True)]
                lines.append(Line(f"published, {curve.recipe}", "published", [points]))
    return [line for line in lines if line.points]


def _of_epochs(facts, stages, key, factor) -> list[Points]:
    return [
        [
            (stage.start + row["epoch"], factor * row[key])
            for row in facts.epochs
            if row["stage"] == stage.stage and _can_be_drawn(row.get(key))
        ]
        for stage in stages
    ]


def _of_steps(facts, stages, key, factor) -> list[Points]:
    starts, strokes, before = {stage.stage: stage.start for stage in stages}, [], 0
    for plan in facts.plans:
        stroke = [
            (starts[plan.stage] + (row["step"] - before) / plan.steps_per_epoch, factor * row[key])
            for row in facts.steps
            if row["stage"] == plan.stage and 0 < row["step"] - before <= plan.steps and _can_be_drawn(row[key])
        ]
        strokes.append(_thinned(stroke, FAINT_POINTS // len(stages) + 1))
        before += plan.steps
    return strokes


def _can_be_drawn(value):
    return value is not None and abs(value) < LARGEST  # not a number is not


def _thinned(points: Points, most: int) -> Points:
    """Means of neighbors, where there are more than `most`."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[k : k + size] for k in range(0, len(points), size)]
    return [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]


def span(facts: Facts, panels: Sequence[Panel]) -> tuple[float, float]:
    """The epochs that the axes show: to the last point of the run, and a tenth ahead while it goes on."""
    ends = [x for panel in panels for line in panel.lines if line.kind != "published" for x, _ in line.points]
    reached = max(ends, default=1.0)
    return 0.0, reached if facts.finished else 1.1 * reached
