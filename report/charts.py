"""Panels -> pictures, all drawn by `_draw` with matplotlib: an SVG for the page, and curves.png.

Import it only to draw: matplotlib takes a second to start.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from report import curves
from report.collect import Facts
from report.colors import COLORS
from report.curves import Border, Panel

STYLE = {
    "svg.fonttype": "none",  # letters stay text: searchable, and in the page's own font
    "text.parse_math": False,  # names of runs and stages are not ours, and may hold a $
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it; the widest of the usual ones, so none needs more room
    "axes.edgecolor": COLORS["soft"][0],
    "axes.labelcolor": COLORS["soft"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLORS["rule"][0],
    "text.color": COLORS["ink"][0],
    "xtick.color": COLORS["soft"][0],
    "ytick.color": COLORS["soft"][0],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "savefig.transparent": False,
}
VARIABLES = {light: f"var(--{name})" for name, (light, _) in reversed(COLORS.items())}
SIZE = (5.4, 2.5)  # inches of a chart; the page stretches it to half its width, or all of it on a narrow screen
DOTS = 40  # a line of at most so many points shows each


class Key(NamedTuple):
    """What a line is, in the legend: its color's name, its label and its last value in words."""

    color: str
    label: str
    last: str


class Chart(NamedTuple):
    """A figure of the page."""

    title: str
    keys: list[Key]
    svg: Markup


def chart(panel: Panel, across: tuple[float, float], stages: Sequence[Border]) -> Chart:
    """`across`: the epochs from left to right."""
    shown = panel._replace(lines=[line for line in panel.within(across).lines if line.points])
    keys = [
        Key(line.kind, line.label, f"{line.points[-1][1]:{panel.form}}") for line in shown.lines if line.kind != "faint"
    ]
    # svg.hashsalt: matplotlib names what it draws at random otherwise, and a report would never be the same twice
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": panel.key}):
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(left=0.13, right=0.985, bottom=0.18, top=0.96)
        _draw(figure.subplots(), shown, across, stages)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    told = ", ".join(f"{key.label or 'last value'} {key.last}" for key in keys)
    return Chart(panel.title, keys, _for_page(buffer.getvalue(), label=f"{panel.title}: {told}"))


def _draw(axes: Axes, panel: Panel, across: tuple[float, float], stages: Sequence[Border]) -> None:
    for line in panel.lines:
        faint = line.kind == "faint"
        few = len(line.points) <= (1 if line.kind == "published" else DOTS)
        dots = few and not faint
        for number, stroke in enumerate(line.strokes):
            axes.plot(
                *zip(*stroke, strict=True),
                color=COLORS["main" if faint else line.kind][0],
                alpha=0.35 if faint else 1,
                linewidth=0.8 if faint else 1.5,
                linestyle="--" if line.kind == "published" else "-",
                marker="." if dots else "",
                clip_on=False,  # a dot on the edge stays whole
                label=line.label if number == 0 and line.label else "_",
            )
    for stage in stages[1:]:
        axes.axvline(stage.start, color=COLORS["soft"][0], linewidth=0.8, linestyle=":")
    if panel.key == "top1" and len(stages) > 1:
        # Where the curve is not: accuracy is low when the first stage begins, and high in those that follow.
        for number, stage in enumerate(stages):
            height, side = (0.97, "top") if number == 0 else (0.03, "bottom")
            place = {"xycoords": ("data", "axes fraction"), "xytext": (2, 0), "textcoords": "offset points"}
            font = {"color": COLORS["soft"][0], "fontsize": 7.5, "rotation": 90}
            axes.annotate(stage.stage, (stage.start, height), **place, **font, ha="left", va=side)
    axes.set_xlim(*across)
    axes.set_xlabel("epoch")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="y", scilimits=(-4, 6), useOffset=False)
    if panel.from_zero:
        axes.set_ylim(bottom=0)


def _for_page(svg: str, *, label: str) -> Markup:
    """matplotlib's file as a part of the page: with the page's colors, and without what is for a file alone."""
    body = svg[svg.index("<defs>") :]
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<clipPath.*?</clipPath>", "", body, flags=re.DOTALL)
    body = re.sub(r' clip-path="[^"]*"| id="[a-z]+[\w.]*_\d+"', "", body)
    body = re.sub("#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), body)
    width, height = (72 * inches for inches in SIZE)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label) + Markup(body)


def confusion_png(shares: np.ndarray, names: Sequence[str]) -> bytes:
    """A picture of `tables.confusion_shares`: a row a true class, a column what it is taken for."""
    side = min(2.5 + 0.22 * len(names), 12)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        places, words = range(len(names)), [str(name)[:24] for name in names]
        size = 9 if len(names) <= 40 else 5
        axes.set_xticks(places, words, rotation=90, fontsize=size)
        axes.set_yticks(places, words, fontsize=size)
        axes.set(xlabel="taken for", ylabel="class")
        figure.colorbar(image, ax=axes, label="share of the class", shrink=0.6)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=100, format="png")
    return buffer.getvalue()


def draw_png(facts: Facts, path: Path) -> None:
    """Writes curves.png, two panels in a row; of an odd number the last has a row of its own."""
    panels, stages = curves.panels(facts), curves.borders(facts)
    across = curves.span(facts, panels)
    rows = max(1, -(-len(panels) // 2))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.5 * rows + 0.4), layout="constrained")
        grid = figure.add_gridspec(rows, 2)
        for number, panel in enumerate(panels):
            is_alone = number == len(panels) - 1 and number % 2 == 0
            axes = figure.add_subplot(grid[number // 2, :] if is_alone else grid[number // 2, number % 2])
            shown = panel.within(across)
            _draw(axes, shown, across, stages)
            axes.set_title(panel.title, fontsize=10, loc="left")
            if sum(bool(line.label) for line in shown.lines) > 1:
                axes.legend(frameon=False)
        figure.suptitle(f"{facts.name}: {facts.recipe.model.name}", fontsize=11)
        figure.savefig(path, dpi=110, format="png")
