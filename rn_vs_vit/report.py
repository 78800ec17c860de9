"""The logs of a grid's cells -> a table, verdicts with their confidence intervals, a plot. Made from the logs alone.

A verdict is the mean over seeds of the difference of two cells of the same seed, with Student's interval at 95 %. It
says how far other seeds would move the difference on these very validation images, not what other images would say.
"""

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

Results = dict[tuple[str, str, int], dict[str, float]]  # (network, augmentation, seed) -> top-1 in % by validation set
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
        if (cell.folder / "report.md").exists():
            last = [row for row in read_rows(cell.folder / "log.jsonl") if row["kind"] == "epoch"][-1]
            results[cell[:3]] = {name: 100 * top1 for name, top1 in ({"val": last["top1"]} | others.read(cell)).items()}
    return results


def differences(grid: Grid, results: Results, network: str, other: str) -> list[float]:
    """The first augmentation minus `other`, in points of top-1 on val: one for each seed that has both."""
    pairs = [[results.get((network, name, seed)) for name in (grid.augmentations[0], other)] for seed in grid.seeds]
    return [one["val"] - two["val"] for one, two in pairs if one and two]


def verdicts(grid: Grid, results: Results) -> list[str]:
    """One line for each network and rival of the first augmentation, then how much the networks differ in it."""
    first, *others = grid.augmentations
    lines = []
    for other in others:
        by_network = {network: differences(grid, results, network, other) for network in grid.networks}
        for network, values in by_network.items():
            if values:
                lines.append(f"{network}: {first} minus {other} = {_judged(interval(values))}")
        if len(grid.networks) == 2 and all(len(values) == len(grid.seeds) for values in by_network.values()):
            one, two = by_network.values()
            gap = [a - b for a, b in zip(one, two, strict=True)]
            lines.append(f"{' minus '.join(by_network)}, in that difference = {_judged(interval(gap))}")
    return lines


def _judged(of: Interval) -> str:
    if of.n < 2:
        return f"{of.mean:+.1f} (one seed: no interval)"
    return f"{of} ({of.n} seeds; {'the interval holds 0' if abs(of.mean) <= of.half else 'not 0'})"


def table(grid: Grid, results: Results) -> str:
    """Markdown: for each network and augmentation mean and standard deviation over the seeds that are there."""
    shown = [name for name in SETS if any(name in row for row in results.values())] or ["val"]
    rows = [("network", "augmentation", "seeds", *(f"top-1 % on {name}" for name in shown))]
    for network in grid.networks:
        for augmentation in grid.augmentations:
            found = [row for seed in grid.seeds if (row := results.get((network, augmentation, seed)))]
            cells = (_mean([row[name] for row in found if name in row]) for name in shown)
            rows.append((network, augmentation, f"{len(found)}/{len(grid.seeds)}", *cells))
    return markdown_table(rows)


def _mean(values):
    if not values:
        return "-"
    return f"{statistics.fmean(values):.1f}" + (f" (sd {statistics.stdev(values):.1f})" if len(values) > 1 else "")


def plot(grid: Grid, results: Results) -> Figure:
    """Left: top-1 of every cell, by network. Right: the first augmentation minus each other one, with intervals."""
    first, *others = grid.augmentations
    columns = len(grid.networks) + 1
    figure = Figure(figsize=(3.4 * columns, 0.9 + 0.5 * len(grid.augmentations)), layout="constrained")
    panels = figure.subplots(1, columns)
    for panel, network in zip(panels, grid.networks, strict=False):
        for place, augmentation in enumerate(grid.augmentations):
            values = [results[key]["val"] for seed in grid.seeds if (key := (network, augmentation, seed)) in results]
            if values:
                panel.plot(values, [place] * len(values), "o", color="C0", alpha=0.35, markeredgewidth=0)
                panel.plot([statistics.fmean(values)], [place], "|", color="black", markersize=16, markeredgewidth=2)
        panel.set_title(network)
        panel.set_xlabel("top-1, % (a dot a seed, a line their mean)")
    panel = panels[-1]
    panel.axvline(0, color="0.6", linewidth=1)
    shift = 0.3 / len(grid.networks)
    for number, network in enumerate(grid.networks):
        found = [(place, values) for place, other in enumerate(others, start=1)
                 if len(values := differences(grid, results, network, other)) > 1]  # fmt: skip
        places = [place + (number - (len(grid.networks) - 1) / 2) * shift * 2 for place, _ in found]
        intervals = [interval(values) for _, values in found]
        panel.errorbar(
            [of.mean for of in intervals], places, xerr=[of.half for of in intervals],
            fmt="os"[number % 2], color=f"C{number + 1}", capsize=3, label=network,
        )  # fmt: skip
    panel.set_title(f"{first} minus the other")
    panel.set_xlabel(f"points of top-1, {LEVEL:.0%} interval over seeds")
    panel.legend(frameon=False, loc="upper center", ncols=len(grid.networks), fontsize=9)
    for panel in panels:
        panel.set_ylim(len(grid.augmentations) - 0.5, -0.6)
        panel.set_yticks(range(len(grid.augmentations)), grid.augmentations)
        panel.grid(axis="x", color="0.92")
        panel.spines[["top", "right"]].set_visible(False)
        if panel is not panels[0]:
            panel.tick_params(labelleft=False)
    return figure


def write(grid: Grid) -> str:
    """Writes table.md and plot.png into the grid's folder; returns the text of the former."""
    results = collect(grid)
    text = "\n\n".join([table(grid, results), "\n".join(f"- {line}" for line in verdicts(grid, results))]) + "\n"
    grid.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(grid.folder / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    write_atomically(grid.folder / "plot.png", lambda path: plot(grid, results).savefig(path, dpi=110, format="png"))
    return text
