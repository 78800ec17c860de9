"""Rows of bench/loader.py -> tables and pictures."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench import report
from bench.loaders import LOADERS, is_baseline, is_upper_bound
from bench.report import Grid
from bench.tasks import DECODE, TASKS

OURS, OURS_RAW, BASELINE, OTHER, BOUND = "#c2410c", "#fdba74", "#475569", "#a8b3c2", "#111827"


def tables(rows: list[dict]) -> list[Grid]:
    """Throughput with our ratios to the best baseline, upper bounds, start-up, memory, sizes: those that have rows."""
    cells = {(row["task"], row["name"]): row for row in rows}
    grids = [
        _throughput(cells),
        _one_column(cells, DECODE.name, "Upper bounds: the JPEG library alone", report.spread, "images/s"),
        _starts(cells),
        _one_column(cells, "size", "Storage", "{value:.1f}".format_map, "KB/image"),
    ]
    return [grid for grid in grids if grid.lines]


def _throughput(cells):
    tasks = [task for task in TASKS.values() if any(key[0] == task.name for key in cells)]
    names = [name for name in LOADERS if any((task.name, name) in cells for task in tasks)]
    lines = [[name, *(report.spread(cells.get((task.name, name))) for task in tasks)] for name in names]
    for name in names:
        ratios = [cells.get((f"{task.name} ratio", name)) for task in tasks]
        if any(ratios):
            lines.append([f"*{name} / best baseline*", *(_ratio(row) for row in ratios)])
    return Grid("Images per second", ["pipeline", *(f"{task.name}: {task.title}" for task in tasks)], lines)


def _ratio(row):
    return "-" if row is None else f"{report.spread(row, '.2f')} x {row['unit']}"


def _starts(cells):
    names = [name for name in LOADERS if ("first batch", name) in cells]
    lines = [
        [name, f"{cells['first batch', name]['value']:.1f}", f"{cells['peak memory', name]['value']:,.0f}"]
        for name in names
    ]
    return Grid("Task B in a new process", ["pipeline", "start to first batch, s", "peak memory, MB"], lines)


def _one_column(cells, task, title, cell, unit):
    lines = [[name, cell(row)] for (of, name), row in cells.items() if of == task]
    return Grid(title, ["", unit], lines)


def plot(rows: list[dict], caption: str) -> Figure:
    """A panel a task, a bar a loader with its range, the upper bound of a full decode as a line."""
    cells = {(row["task"], row["name"]): row for row in rows}
    tasks = [task for task in TASKS.values() if any(key[0] == task.name for key in cells)]
    names = [name for name in LOADERS if not is_upper_bound(name) and any((task.name, name) in cells for task in tasks)]
    figure = Figure(figsize=(2.2 + 2.3 * len(tasks), 1.3 + 0.34 * len(names)), layout="constrained", dpi=150)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for task, panel in zip(tasks, panels, strict=True):
        for place, name in enumerate(names):
            row = cells.get((task.name, name))
            if row is None:
                continue
            spread = [[row["value"] - row["lo"]], [row["hi"] - row["value"]]]
            panel.barh(place, row["value"], 0.72, color=_color(name), xerr=spread, error_kw={"lw": 1})
            panel.annotate(
                f"{row['value']:,.0f}", (row["hi"], place), (4, 0), textcoords="offset points", va="center", fontsize=8,
                bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
            )  # fmt: skip
        if bound := cells.get((task.name, "bound-decode")):
            panel.axvline(bound["value"], color=BOUND, lw=1, ls=":", zorder=0.5)
        panel.set_title(f"{task.name}: {task.title}", fontsize=9)
        panel.margins(x=0.24)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    words = "images/s, medians and ranges; dotted: the JPEGs decoded by the library and nothing else"
    figure.supxlabel("\n".join([words, *textwrap.wrap(caption, 45 * len(tasks))]), fontsize=7)
    return figure


def _color(name):
    if name.startswith("ours"):
        return OURS_RAW if name.endswith("-raw") else OURS
    return BASELINE if is_baseline(name) else OTHER
