"""The logs of a grid's cells -> a table, verdicts with their confidence intervals, a plot. Made from the logs alone.

A verdict is the mean over seeds of the difference of two cells of the same seed, with Student's interval at 95 %. It
says how far other seeds would move the difference on these very validation images, not what other images would say.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from scipy.stats import t as student

from config.text import markdown_table
from ffcv_ops.files import write_atomically
from rn_vs_vit import others
from rn_vs_vit.grid import Grid
from training.logging.records import read_rows

matplotlib.use("Agg")

# (row, choice, seed) -> top-1 in % by validation set, and the seconds of training, without evaluation
Results = dict[tuple[str, str, int], dict[str, float]]
SETS = ("val", "ReaL", "V2")
LEVEL = 0.95


class Interval(NamedTuple):
    """mean -+ half, of `n` values; `half` is infinite for fewer than two."""

    mean: float
    half: float
    n: int

    def __str__(self):
        return f"{self.mean:+.1f} ± {self.half:.1f}"


def interval(values: Sequence[float]) -> Interval:
    """Student's confidence interval for the mean of these values."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Interval(mean, math.inf, n)
    return Interval(mean, student.ppf((1 + LEVEL) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n), n)


def collect(grid: Grid) -> Results:
    """The results of all finished cells, of the last epoch of each."""
    results = {}
    for cell in grid.cells:
        if cell.done:
            epochs = [row for row in read_rows(cell.folder / "log.jsonl") if row["kind"] == "epoch"]
            top1 = {"val": epochs[-1]["top1"]} | others.read(cell)
            results[cell[:3]] = {name: 100 * value for name, value in top1.items()}
            results[cell[:3]]["seconds"] = sum(row["seconds"] for row in epochs)
    return results


def differences(grid: Grid, results: Results, row: str, other: str) -> list[float]:
    """The first choice minus `other`, in points of top-1 on val: one for each seed that has both."""
    pairs = [[results.get((row, name, seed)) for name in (grid.choices[0], other)] for seed in grid.seeds]
    return [one["val"] - two["val"] for one, two in pairs if one and two]


def verdicts(grid: Grid, results: Results) -> list[str]:
    """One line for each row and rival of the first choice, then, of two rows, how much they differ in it."""
    first, *others = grid.choices
    lines = []
    for other in others:
        by_row = {row: differences(grid, results, row, other) for row in grid.rows}
        for row, values in by_row.items():
            if values:
                lines.append(f"{row}: {first} minus {other} = {_judged(interval(values))}")
        if len(grid.rows) == 2 and all(len(values) == len(grid.seeds) for values in by_row.values()):
            one, two = by_row.values()
            gap = [a - b for a, b in zip(one, two, strict=True)]
            lines.append(f"{' minus '.join(by_row)}, in that difference = {_judged(interval(gap))}")
    return lines


def _judged(of: Interval) -> str:
    if of.n < 2:
        return f"{of.mean:+.1f} (one seed: no interval)"
    return f"{of} ({of.n} seeds; {'the interval holds 0' if abs(of.mean) <= of.half else 'not 0'})"


def table(grid: Grid, results: Results) -> str:
    """Markdown: for each row and choice mean and standard deviation over the seeds that are there."""
    shown = [name for name in SETS if any(name in row for row in results.values())] or ["val"]
    rows = [(*grid.axes, "seeds", *(f"top-1 % on {name}" for name in shown), "seconds")]
    for row in grid.rows:
        for choice in grid.choices:
            found = [one for seed in grid.seeds if (one := results.get((row, choice, seed)))]
            cells = (_mean([one[name] for one in found if name in one]) for name in (*shown, "seconds"))
            rows.append((row, choice, f"{len(found)}/{len(grid.seeds)}", *cells))
    return markdown_table(rows)


def _mean(values):
    if not values:
        return "-"
    return f"{statistics.fmean(values):.1f}" + (f" (sd {statistics.stdev(values):.1f})" if len(values) > 1 else "")


def plot(grid: Grid, results: Results) -> Figure:
    """A panel for each row with results, top-1 of its cells, all at one scale; then, where two seeds tell it, the first
    choice minus each other one, with intervals."""
    every = {row: [one["val"] for key, one in results.items() if key[0] == row] for row in grid.rows}
    every = {row: values for row, values in every.items() if values}
    apart = {}
    for row, (place, other) in itertools.product(every, enumerate(grid.choices)):
        if place and len(values := differences(grid, results, row, other)) > 1:
            apart.setdefault(row, {})[place] = interval(values)
    columns = len(every) + bool(apart)
    figure = Figure(figsize=(max(3.4 * columns, 4), 1.2 + 0.5 * len(grid.choices)), layout="constrained")
    if not every:
        figure.text(0.5, 0.5, "no cell has finished yet", ha="center")
        return figure
    panels = figure.subplots(1, columns, squeeze=False)[0]
    reach = max(0.3, *(0.6 * (max(values) - min(values)) for values in every.values()))  # points from the middle
    for panel, (row, values) in zip(panels, every.items(), strict=False):
        for place, choice in enumerate(grid.choices):
            found = [results[key]["val"] for seed in grid.seeds if (key := (row, choice, seed)) in results]
            if len(found) > 1:  # below the dots
                panel.plot([statistics.fmean(found)], [place], "|", color="0.25", markersize=24, markeredgewidth=1.5)
            panel.plot(found, [place] * len(found), "o", color="C0", alpha=0.6, markeredgewidth=0)
        middle = (min(values) + max(values)) / 2
        panel.set(xlim=(middle - reach, middle + reach), title=row, xlabel="top-1, % (dots: seeds, line: mean)")
    if apart:
        _plot_differences(panels[-1], apart)
        alone = f"{next(iter(apart))}: " if len(apart) == 1 else ""
        panels[-1].set_title(f"{alone}{grid.choices[0]} minus the other")
    for panel in panels:
        panel.set_ylim(len(grid.choices) - 0.5, -0.6)
        panel.set_yticks(range(len(grid.choices)), grid.choices)
        panel.grid(axis="x", color="0.92")
        panel.spines[["top", "right"]].set_visible(False)
        if panel is not panels[0]:
            panel.tick_params(labelleft=False)
    return figure


def _plot_differences(panel, apart):
    """apart: {row: {place from the top: interval}}"""
    panel.axvline(0, color="0.6", linewidth=1)
    shift = 0.6 / len(apart)
    for number, (row, intervals) in enumerate(apart.items()):
        panel.errorbar(
            [of.mean for of in intervals.values()],
            [place + (number - (len(apart) - 1) / 2) * shift for place in intervals],
            xerr=[of.half for of in intervals.values()],
            fmt="os"[number % 2], color=f"C{number + 1}", capsize=3, label=row,
        )  # fmt: skip
    panel.set_xlabel(f"points of top-1, {LEVEL:.0%} interval")
    if len(apart) > 1:
        panel.legend(frameon=False, loc="upper center", ncols=len(apart), fontsize=9)


def plot_seconds(grid: Grid, results: Results) -> Figure:
    """Top-1 against the seconds of training: a dot for each cell, a cross for its seeds: the mean of top-1 and the
    median of seconds, which other work on a machine stretches for some."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for number, (row, choice) in enumerate(itertools.product(grid.rows, grid.choices)):
        found = [(one["seconds"], one["val"]) for key, one in results.items() if key[:2] == (row, choice)]
        if found:
            color, label = f"C{number % 10}", choice if len(grid.rows) == 1 else f"{row}, {choice}"
            panel.plot(*zip(*found, strict=True), "o", color=color, alpha=0.4, markeredgewidth=0)
            seconds, accuracy = zip(*found, strict=True)
            cross = [statistics.median(seconds)], [statistics.fmean(accuracy)]
            panel.plot(*cross, "x", color=color, markersize=9, markeredgewidth=2, label=label)
    panel.set(xlabel="seconds of training, without evaluation", ylabel="top-1, %")
    panel.grid(color="0.92")
    panel.spines[["top", "right"]].set_visible(False)
    if results:
        panel.legend(frameon=False, fontsize=9)
    return figure


def write(grid: Grid, remark: str = "") -> str:
    """Writes table.md, plot.png and seconds.png into the grid's folder; returns the text of the first. `remark`: in
    what all cells differ from the grid's file."""
    results = collect(grid)
    verdict = "\n".join(f"- {line}" for line in verdicts(grid, results))
    text = "\n\n".join(filter(None, [table(grid, results), verdict, remark])) + "\n"
    grid.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(grid.folder / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    for name, draw in (("plot.png", plot), ("seconds.png", plot_seconds)):
        figure = draw(grid, results)
        write_atomically(grid.folder / name, lambda path, figure=figure: figure.savefig(path, dpi=110, format="png"))
    return text
