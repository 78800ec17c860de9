"""Several runs side by side: their last numbers, the keys in which their recipes differ, their curves in one chart."""

import dataclasses
from collections.abc import Sequence

from config.options import to_yaml
from config.recipe import Recipe
from report import charts, colors, curves, page, tables
from report.charts import Chart
from report.collect import Facts

SHOWN = ("top1", "loss", "val_loss", "lr", "images_per_s", "wait", "grad_norm")


def differences(runs: Sequence[Facts]) -> list[tuple[str, ...]]:
    """The keys that are not the same in all runs, with their values; stages are compared by their place, as far as all
    runs have one there. `log` is left out. [] where nothing differs."""
    common = min(len(facts.recipe.stages) for facts in runs)
    flat = [_flat(facts.recipe, common) for facts in runs]
    rows = [(name, *(values[name] for values in flat)) for name in flat[0]]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return [("key", *(facts.name for facts in runs)), *rows] if rows else []


def _flat(recipe: Recipe, stages: int) -> dict[str, str]:
    """Every key that may change the run, spelled as in a recipe, of the first `stages` stages."""
    sections = {"data": recipe.data, "model": recipe.model, "speed": recipe.speed}
    sections |= {f"stage {number + 1}": recipe.stages[number] for number in range(stages)}
    values = {"seed": to_yaml(recipe.seed), "on_nonfinite": to_yaml(recipe.on_nonfinite)}
    values["stages"] = str(len(recipe.stages))
    for name, section in sections.items():
        values |= {f"{name}: {key}": to_yaml(value) for key, value in dataclasses.asdict(section).items()}
    return values


def overlaid(runs: Sequence[Facts]) -> list[Chart]:
    """A chart for each kind of curve, with a line of a color of its own for each run that has one."""
    of_each = [{panel.key: panel for panel in curves.panels(facts)} for facts in runs]
    across = max(curves.span(facts, list(panels.values())) for facts, panels in zip(runs, of_each, strict=True))
    alike = all(curves.borders(facts) == curves.borders(runs[0]) for facts in runs)
    made = []
    for key in SHOWN:
        found = [(number, panels[key]) for number, panels in enumerate(of_each) if key in panels]
        lines = [
            line._replace(label=runs[number].name, kind=f"run{1 + number % colors.RUNS}")
            for number, panel in found
            for line in panel.lines
            if line.kind == "main"
        ]
        if lines:
            panel = found[0][1]._replace(lines=lines)
            made.append(charts.chart(panel, across, curves.borders(runs[0]) if alike else []))
    return made


def render(runs: Sequence[Facts]) -> str:
    """The page."""
    title = "Comparison of " + ", ".join(facts.name for facts in runs)
    return page.TEMPLATES.get_template("compare.html").render(
        title=title, runs=runs, numbers=tables.run_table(runs), differences=differences(runs), charts=overlaid(runs)
    )
