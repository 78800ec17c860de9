"""Rows -> tables."""

from bench import report
from bench.step.clock import PHASES
from bench.step.tasks import QUICK, TASKS


def grids(rows) -> list[report.Grid]:
    """A table of the steps, a column for each measure, and one of the rest."""
    tasks = [row["task"] for row in rows if row["unit"] == "images/s" and row["task"] != "loading"]
    found = {(row["task"], row["name"]): row for row in rows}
    made = []
    for task in dict.fromkeys(tasks):
        measures = ["", " step", *(f" {phase}" for phase in PHASES), " ratio", " share", " memory"]
        header = ["", *(found_unit(rows, task + measure, measure) for measure in measures)]
        names = [row["name"] for row in rows if row["task"] == task]
        lines = [[who, *(cell(found.get((task + measure, who))) for measure in measures)] for who in names]
        made.append(report.Grid(TASKS[task].title if task in TASKS else QUICK.title, header, lines))
    others = [row for row in rows if row["task"].endswith("ceiling") or not row["task"].startswith(tuple(tasks))]
    if others:
        lines = [[f"{row['task']}: {row['name']}", cell(row), row["unit"]] for row in others]
        made.append(report.Grid("parts of a step", ["", "median", "unit"], lines))
    return made


def found_unit(rows, task, measure) -> str:
    units = [row["unit"] for row in rows if row["task"] == task]
    return f"{measure.strip()} {units[0]}".strip() if units else measure.strip()


def cell(row) -> str:
    if row is None:
        return "-"
    if row["n"] == 1 or row["lo"] == row["hi"]:
        return f"{row['value']:.4g}"
    return f"{row['value']:.4g} [{row['lo']:.4g}-{row['hi']:.4g}]"
