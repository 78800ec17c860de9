"""The report of a run, made from its log alone: a table of the stages (report.md) and its curves (curves.png)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from training.log import read_rows
from training.recipe import Run
from training.state import RunFolder, write_atomically

matplotlib.use("Agg")

COLUMNS = ("stage", "px", "epochs", "top-1 %", "top-5 %", "averaged top-1 %", "images/s", "waited for data", "minutes")


def stages(rows: list[dict], run: Run) -> list[dict]:
    """One summary for each stage that has finished an epoch."""
    summaries = []
    for stage in run.stages:
        epochs = [row for row in rows if row["kind"] == "epoch" and row["stage"] == stage.name]
        if not epochs:
            continue
        evaluated = [row for row in epochs if "top1" in row]
        seconds = sum(row["seconds"] for row in epochs)
        images = sum(row["seconds"] * row["images_per_s"] for row in epochs)
        summaries.append(
            {
                "stage": stage.name,
                "px": stage.resolution,
                "epochs": f"{epochs[-1]['epoch']}/{stage.epochs}",
                "top-1 %": _percent(evaluated, "top1"),
                "top-5 %": _percent(evaluated, "top5"),
                "averaged top-1 %": _percent(evaluated, "ema_top1"),
                "images/s": f"{images / seconds:.0f}",
                "waited for data": f"{sum(r['wait'] * r['seconds'] for r in epochs) / seconds:.1%}",
                "minutes": f"{seconds / 60:.1f}",
            }
        )
    return summaries


def _percent(rows: list[dict], key: str) -> str:
    return f"{100 * rows[-1][key]:.2f}" if rows and key in rows[-1] else "-"


def table(summaries: list[dict]) -> str:
    """A Markdown table of them."""
    return padded([COLUMNS, *([str(row[column]) for column in COLUMNS] for row in summaries)])


def padded(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, headings first, padded so that it also reads well on a console."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(lines)


def curves(rows: list[dict], run: Run, path: Path) -> None:
    """Loss, top-1, learning rate and speed over the epochs of all stages, with the stages' borders."""
    epochs = [row for row in rows if row["kind"] == "epoch"]
    place = list(range(1, len(epochs) + 1))
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    drawn = (
        (panels[0, 0], "loss", "training loss", 1),
        (panels[0, 1], "top1", "top-1 on validation, %", 100),
        (panels[1, 0], "lr", "learning rate", 1),
        (panels[1, 1], "images_per_s", "training images/s", 1),
    )
    for axes, key, title, scale in drawn:
        points = [(x, scale * row[key]) for x, row in zip(place, epochs, strict=True) if key in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else "", linewidth=1.5, color="#2b5c8a")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        for x, row in zip(place[1:], epochs[1:], strict=True):
            if row["epoch"] == 1:
                axes.axvline(x - 0.5, color="0.6", linewidth=0.8, linestyle=":")
    for x, row in zip(place, epochs, strict=True):
        if row["epoch"] == 1:
            panels[0, 1].annotate(
                f"{row['stage']}", (x, 2), fontsize=8, color="0.35", rotation=90, ha="left", va="bottom"
            )
    for axes in panels[1]:
        axes.set_xlabel("epoch, over all stages")
    figure.suptitle(f"{Path(run.source).stem}: {run.model.name}", fontsize=11)
    figure.savefig(path, dpi=110, format="png")


def write(folder: RunFolder, run: Run) -> str:
    """Writes report.md and curves.png into the run's folder; returns what the console says at the end."""
    rows = read_rows(folder.log)
    said = table(stages(rows, run))
    write_atomically(folder.path / "curves.png", lambda path: curves(rows, run, path))
    text = (
        f"# {Path(run.source).stem}\n\nModel {run.model.name}, seed {run.seed}; recipe in recipe.yaml, machine and"
        f" versions in environment.json.\n\n{said}\n\n![curves](curves.png)\n"
    )
    write_atomically(folder.path / "report.md", lambda path: path.write_text(text, encoding="utf-8"))
    return f"\n{said}\n\nreport: {folder.path / 'report.md'}   weights: {folder.path / 'model.safetensors'}"
