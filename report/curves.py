"""What the curves of a run show: rows of its log -> panels of lines over the epochs of all stages.

Epochs are counted from the first stage in the log. Points of log points lie within their epoch.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from report.collect import Facts

Points = list[tuple[float, float]]
FAINT_POINTS = 400  # of a line of log points, about, at most; more are averaged


class Line(NamedTuple):
    """A curve, in one stroke for each stage."""

    label: str
    kind: Literal["main", "second", "official", "faint"]
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
    lines: list[Line]
    form: str  # how a value is written
    from_zero: bool = False


class Border(NamedTuple):
    """Where a stage begins and ends."""

    stage: str
    start: float
    end: float


SCALES = {  # key of a row -> title, factor, how a value is written, whether the axis begins at 0
    "top1": ("Top-1 on validation, %", 100, ".2f", True),
    "loss": ("Training loss", 1, ".4g", False),
    "val_loss": ("Validation loss (cross-entropy)", 1, ".4g", False),
    "lr": ("Learning rate", 1, ".3g", True),
    "resolution": ("Training resolution, px", 1, ".0f", True),
    "images_per_s": ("Training images/s", 1, ",.0f", True),
    "wait": ("Waiting for data, % of the time", 100, ".1f", True),
    "grad_norm": ("Gradient norm", 1, ".3g", True),
}
OF_STEPS = ("loss", "lr", "images_per_s", "wait", "grad_norm")  # what log points tell too


def borders(facts: Facts) -> list[Border]:
    """The stages in the log; the last one ends where it is planned to."""
    names = list(dict.fromkeys(row["stage"] for row in (*facts.epochs, *facts.steps)))
    found, start = [], 0.0
    for stage in facts.run.stages:
        if stage.name in names:
            found.append(Border(stage.name, start, start + stage.epochs))
            start += stage.epochs
    return found


def panels(facts: Facts) -> list[Panel]:
    """All panels that have something to show."""
    stages = {border.stage: border for border in borders(facts)}
    if not stages:
        return []
    made = []
    for key, (title, factor, form, from_zero) in SCALES.items():
        lines = []
        if key in OF_STEPS:
            most = FAINT_POINTS // len(stages) + 1
            faint = [_thinned(stroke, most) for stroke in _of_steps(facts, stages, key, factor)]
            lines.append(Line("", "faint", faint))
        strokes = _of_epochs(facts, stages, key, factor)
        if key == "resolution":  # constant within an epoch
            strokes = [[(x - before, y) for x, y in stroke for before in (1, 0)] for stroke in strokes]
        lines.append(Line("", "main", strokes))
        if key == "top1":
            lines[-1] = lines[-1]._replace(label="raw weights")
            lines.append(Line("averaged weights (EMA)", "second", _of_epochs(facts, stages, "ema_top1", factor)))
            lines += [Line(f"official, {course.recipe}", "official", _official(course, stages[stage]))
                      for stage, course in facts.courses.items() if stage in stages]  # fmt: skip
        lines = [line for line in lines if line.points]
        if lines:
            made.append(Panel(key, title, lines, form, from_zero))
    return made


def _of_epochs(facts, stages, key, factor) -> list[Points]:
    return [
        [(stage.start + row["epoch"], factor * row[key]) for row in facts.epochs
         if row["stage"] == stage.stage and key in row and math.isfinite(row[key])]
        for stage in stages.values()
    ]  # fmt: skip


def _of_steps(facts, stages, key, factor) -> list[Points]:
    strokes, before = [], 0
    for part in facts.parts:
        rows = [row for row in facts.steps if row["stage"] == part.stage and math.isfinite(row[key])]
        strokes.append([(stages[part.stage].start + (row["step"] - before) / part.steps, factor * row[key])
                        for row in rows])  # fmt: skip
        before += part.steps * len(part.work)
    return strokes


def _thinned(points: Points, most: int) -> Points:
    """StepStats of neighbours, where there are more than `most`."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[k : k + size] for k in range(0, len(points), size)]
    return [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]


def _official(course, border) -> list[Points]:
    return [[(border.start + epoch, top1) for epoch, top1 in zip(course.epochs, course.top1, strict=True)]]


def span(facts: Facts, some: Sequence[Panel]) -> tuple[float, float]:
    """The epochs that the axes show: to the last point of the run, and a tenth ahead while it goes on."""
    reached = max((x for panel in some for line in panel.lines if line.kind != "official" for x, _ in line.points),
                  default=1.0)  # fmt: skip
    return 0.0, reached if facts.finished else 1.1 * reached
