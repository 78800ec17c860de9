"""Rows of bench/loader.py -> tables and pictures."""

import textwrap

from matplotlib.figure import Figure

from bench import report
from bench.loaders import LOADERS, is_baseline, is_upper_bound
from bench.report import Grid
from bench.tasks import DECODE, TASKS

OURS, OURS_FASTER, BASELINE, BOUND = "#c2410c", "#f59e6b", "#64748b", "#111827"


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
    """A panel a task, one below the other, as wide as a page of GitHub: a bar a loader of JPEGs with its range, the
    upper bound of a full decode as a line. Loaders of stored pixels are in the table: they would squeeze all others."""
    cells = {(row["task"], row["name"]): row for row in rows}
    shown = {
        task: [name for name in LOADERS if _is_drawn(name) and (task.name, name) in cells] for task in TASKS.values()
    }
    shown = {task: names for task, names in shown.items() if names}
    heights = [0.5 + 0.24 * len(names) for names in shown.values()]
    figure = Figure(figsize=(8.3, sum(heights) + 0.9), layout="constrained", dpi=150)
    panels = figure.subplots(len(shown), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for (task, names), panel in zip(shown.items(), panels, strict=True):
        for place, name in enumerate(names):
            row = cells[task.name, name]
            spread = [[row["value"] - row["lo"]], [row["hi"] - row["value"]]]
            panel.barh(place, row["value"], 0.72, color=_color(name), xerr=spread, error_kw={"lw": 1})
            panel.annotate(
                f"{row['value']:,.0f}", (row["hi"], place), (5, 0), textcoords="offset points", va="center",
                fontsize=10, bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
            )  # fmt: skip
        if bound := cells.get((task.name, "bound-decode")):
            panel.axvline(bound["value"], color=BOUND, lw=1, ls=":", zorder=0.5)
        title = task.title.replace("RRC", "RandomResizedCrop").replace("SRC", "Simple Random Crop")
        title = f"{task.name}: {title.replace('eval', 'evaluation')}"
        panel.set_title(title, fontsize=11, loc="left", weight="bold")
        panel.set_yticks(range(len(names)), names, fontsize=10)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[-1].margins(x=0.08)
    words = (
        "images/s: median and range. Pale: low resolutions decode less, not exact. "
        "Dotted: the library decodes the JPEGs and does nothing else."
    )
    figure.supxlabel("\n".join([words, *textwrap.wrap(caption, 125)]), fontsize=8)
    return figure


def _is_drawn(name):
    return not is_upper_bound(name) and not name.endswith("-raw")


def _color(name):
    if is_baseline(name):
        return BASELINE
    return OURS_FASTER if LOADERS[name][1].get("keys") else OURS  # of keys that are not the default, which is exact
