"""Several runs side by side: their last numbers, the keys in which their recipes differ, their curves in one chart."""

import dataclasses
from collections.abc import Sequence

from config.options import to_yaml
from config.recipe import Recipe
from report import charts, collect, curves, page, tables
from report.collect import Facts
from training import progress

SHOWN = ("top1", "loss", "val_loss", "lr", "images_per_s", "wait", "grad_norm")
COLOURS = 8
COLUMNS = ("run", "epochs", "top-1 %", "best top-1 %", "averaged top-1 %", "val loss", "images/s", "waited", "time")


def numbers(runs: Sequence[Facts]) -> list[tuple[str, ...]]:
    """The last numbers of each run, of the stage that it has come to."""
    rows = [COLUMNS]
    for facts in runs:
        evaluated = [row for row in facts.epochs if "top1" in row]
        in_stage = [row for row in evaluated if row["stage"] == evaluated[-1]["stage"]]
        planned = sum(stage.epochs for stage in facts.run.stages)
        seconds = max(sum(row["seconds"] for row in facts.epochs), 1e-9)
        images = sum(row["seconds"] * row["images_per_s"] for row in facts.epochs)
        rows.append(
            (
                facts.name, f"{len(facts.epochs)}/{planned}", tables.percent(evaluated, "top1"),
                f"{100 * max(row['top1'] for row in in_stage):.2f}" if in_stage else "-",
                tables.percent([row for row in facts.epochs if "ema_top1" in row], "ema_top1"),
                f"{evaluated[-1]['val_loss']:.4f}" if evaluated else "-", f"{images / seconds:,.0f}",
                f"{sum(row['wait'] * row['seconds'] for row in facts.epochs) / seconds:.1%}",
                progress.words(3600 * collect.hours(facts)),
            )
        )  # fmt: skip
    return rows


def differences(runs: Sequence[Facts]) -> list[tuple[str, ...]]:
    """The keys that are not the same in all runs, with their values; stages are compared by their place, as far as all
    runs have one there. `log` is left out. [] where nothing differs."""
    common = min(len(facts.run.stages) for facts in runs)
    flat = [_flat(facts.run, common) for facts in runs]
    rows = [(name, *(one[name] for one in flat)) for name in flat[0]]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return [("key", *(facts.name for facts in runs)), *rows] if rows else []


def _flat(run: Recipe, stages: int) -> dict[str, str]:
    """Every key that may change the run, spelled as in a recipe, of the first `stages` stages."""
    sections = {"data": run.data, "model": run.model, "speed": run.speed}
    sections |= {f"stage {number + 1}": run.stages[number] for number in range(stages)}
    made = {"seed": to_yaml(run.seed), "on_nonfinite": to_yaml(run.on_nonfinite)}
    made["stages"] = str(len(run.stages))
    for name, section in sections.items():
        made |= {f"{name}: {key}": to_yaml(value) for key, value in dataclasses.asdict(section).items()}
    return made


def overlaid(runs: Sequence[Facts]) -> list[charts.Chart]:
    """A chart for each kind of curve, with a line of a colour of its own for each run that has one."""
    of_each = [{panel.key: panel for panel in curves.panels(facts)} for facts in runs]
    across = max(curves.span(facts, list(some.values())) for facts, some in zip(runs, of_each, strict=True))
    alike = all(curves.borders(facts) == curves.borders(runs[0]) for facts in runs)
    made = []
    for key in SHOWN:
        found = [(number, some[key]) for number, some in enumerate(of_each) if key in some]
        lines = [(number, line) for number, panel in found for line in panel.lines if line.kind == "main"]
        if lines:
            panel = found[0][1]._replace(lines=[line._replace(label=runs[number].name) for number, line in lines])
            colours = [1 + number % COLOURS for number, _ in lines]
            made.append(charts.chart(panel, across, curves.borders(runs[0]) if alike else [], colours=colours))
    return made


def render(runs: Sequence[Facts]) -> str:
    """The page."""
    title = "Comparison of " + ", ".join(facts.name for facts in runs)
    return page.template("compare.html").render(
        title=title, runs=runs, numbers=numbers(runs), differences=differences(runs), charts=overlaid(runs)
    )
