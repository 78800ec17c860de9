"""curves.png: the panels of the report as one picture, for documents and for those who read no HTML."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from report import curves
from report.collect import Facts
from report.curves import Panel

matplotlib.use("Agg")

COLOURS = {"main": "#1f5fa8", "second": "#c2571a", "official": "#7c8794", "faint": "#a9c3e0"}


def draw(facts: Facts, path: Path) -> None:
    """Writes the picture, three panels in a row."""
    some, stages = curves.panels(facts), curves.borders(facts)
    across = curves.span(facts, some)
    columns = 3
    rows = max(1, -(-len(some) // columns))
    figure = Figure(figsize=(13, 2.7 * rows + 0.5), layout="constrained")
    axes_of = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes, panel in zip(axes_of, some, strict=False):
        _panel(axes, panel, across)
        for stage in stages[1:]:
            axes.axvline(stage.start, color="0.6", linewidth=0.8, linestyle=":")
        if panel.key == "top1":
            for stage in stages:
                axes.annotate(stage.stage, (stage.start, 0.02), xycoords=("data", "axes fraction"), fontsize=8,
                              color="0.35", rotation=90, ha="left", va="bottom")  # fmt: skip
    for axes in axes_of[len(some) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch, over all stages", fontsize=9)
    figure.suptitle(f"{facts.name}: {facts.run.model.name}", fontsize=11)
    figure.savefig(path, dpi=110, format="png")


def _panel(axes, panel: Panel, across: Sequence[float]) -> None:
    labelled = [line for line in panel.lines if line.label]
    for line in panel.lines:
        shown = line.within(across)
        few = line.kind in ("main", "second") and len(shown.points) < 60
        for number, stroke in enumerate(shown.strokes):
            axes.plot(
                *zip(*stroke, strict=True), linewidth=1.5 if line.kind != "faint" else 0.8, color=COLOURS[line.kind],
                marker="." if few else "", linestyle="--" if line.kind == "official" else "-",
                label=line.label if number == 0 and line.label else "_",
            )  # fmt: skip
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(*across)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if len(labelled) > 1:
        axes.legend(frameon=False, fontsize=8)
