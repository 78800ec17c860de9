"""Panels -> what the page draws: SVG paths and the places of labels.

A path lives in a square of 1000 x 1000 that the browser stretches to the chart's size; labels are text of the page,
placed in percent. So lines and letters keep their sizes on a telephone, on a screen and on paper.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from report.curves import Border, Line, Panel, Points

UNITS = 1000
DOTS = 40  # a line of at most so many points shows each


class Tick(NamedTuple):
    """A label of an axis; `place` in percent from the left or the bottom."""

    place: float
    text: str


class Trace(NamedTuple):
    """A line as an SVG path, a second path with its dots, and the last value in words."""

    kind: str
    label: str
    path: str
    dots: str
    last: str
    colour: int = 0  # of a palette, where several runs share a chart; 0: that of `kind`


class Chart(NamedTuple):
    """One chart."""

    key: str
    title: str
    traces: list[Trace]
    x: list[Tick]
    y: list[Tick]
    stages: list[Tick]  # where each begins
    summary: str  # for those who cannot see it


def chart(
    panel: Panel, across: tuple[float, float], stages: Sequence[Border], *, colours: Sequence[int] | None = None
) -> Chart:
    """`across`: the epochs from left to right. `colours`: of the lines, for a comparison of runs."""
    shown = [line.within(across) for line in panel.lines]
    up = _limits([y for line in shown for _, y in line.points], from_zero=panel.from_zero)
    colours = colours or [0] * len(shown)
    traces = [_trace(line, across, up, panel.form, colour)
              for line, colour in zip(shown, colours, strict=True) if line.points]  # fmt: skip
    begins = [Tick(_percent(stage.start, across), stage.stage) for stage in stages if stage.start < across[1]]
    told = ", ".join(f"{trace.label or 'last value'} {trace.last}" for trace in traces if trace.kind != "faint")
    return Chart(panel.key, panel.title, traces, _ticks(across, 6, whole=True), _ticks(up, 4), begins, told)


def _limits(values: list[float], *, from_zero: bool) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(low, 0.0) if from_zero else low
    room = (high - low) or abs(high) or 1.0
    return (low if from_zero else low - 0.06 * room), high + 0.06 * room


def _ticks(limits: tuple[float, float], most: int, *, whole: bool = False) -> list[Tick]:
    places = MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(*limits)
    inside = [place for place in places if limits[0] <= place <= limits[1] * (1 + 1e-9)]
    digits = next((n for n in range(7) if all(math.isclose(p, round(p, n), abs_tol=1e-9) for p in inside)), 7)
    return [Tick(_percent(place, limits), _short(place, digits)) for place in inside]


def _short(value: float, digits: int) -> str:
    """A tick's number, with no more digits after the point than the ticks of its axis need."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if digits > 4 and value:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.{digits}f}" if value else "0"


def _percent(value, limits):
    return round(100 * (value - limits[0]) / (limits[1] - limits[0]), 3)


def _trace(line: Line, across, up, form, colour) -> Trace:
    strokes = [
        [f"{UNITS * _percent(x, across) / 100:.1f} {UNITS - UNITS * _percent(y, up) / 100:.1f}" for x, y in stroke]
        for stroke in line.strokes
    ]
    path = "".join("M" + "L".join(stroke) for stroke in strokes)
    places = [place for stroke in strokes for place in stroke]
    few = line.kind in ("main", "second") and len(places) <= DOTS
    dots = "".join(f"M{place}h0" for place in places) if few else ""
    return Trace(line.kind, line.label, path, dots, _last(line.points, form), colour)


def _last(points: Points, form: str) -> str:
    return f"{points[-1][1]:{form}}"
