"""Results of a benchmark: rows -> JSON, tables, a part of a Markdown file."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench import machine
from ffcv_ops.errors import UserError


class Grid(NamedTuple):
    """A table of text. The first column names the rows."""

    title: str
    header: list[str]
    lines: list[list[str]]


def row(task: str, name: str, values: list[float], unit: str) -> dict:
    """The median of `values` and their range."""
    low, high = min(values), max(values)
    middle = statistics.median(values)
    return {"task": task, "name": name, "value": middle, "unit": unit, "lo": low, "hi": high, "n": len(values)}


def write_json(path: Path, about: dict, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[dict, list[dict]]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return results["machine"], results["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the JSON of a benchmark ({error!r}); run it again with --json {path}") from None


def markdown(grid: Grid) -> str:
    widths = [max(map(len, column)) for column in zip(grid.header, *grid.lines, strict=True)]
    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (grid.header, dashes, *grid.lines):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def show(grid: Grid):
    """On a terminal a table, elsewhere Markdown, which does not depend on a width."""
    console = Console()
    if not console.is_terminal:
        print(f"{grid.title}\n\n{markdown(grid)}")
        return
    table = Table(title=grid.title, title_justify="left")
    for k, title in enumerate(grid.header):
        table.add_column(title, justify="right" if k else "left")
    for line in grid.lines:
        table.add_row(*line)
    console.print(table)


def tell(grids: Iterable[Grid], rows: list[dict], path: Path | None, about: dict | None = None):
    """Shows the tables and writes the rows to `path`, if there is one. `about`: the machine; None: as it is now."""
    for grid in grids:
        show(grid)
    if path:
        write_json(path, about or machine.describe(), rows)


def put_into(path: Path, marker: str, grids: Iterable[Grid], about: dict):
    """The tables and what they were measured on, between the marks of a Markdown file."""
    text = "".join(f"{grid.title}\n\n{markdown(grid)}\n" for grid in grids)
    replace_between(path, marker, f"{text}`{about['command']}`, {machine.in_words(about)}.\n")


def replace_between(path: Path, marker: str, text: str):
    """Puts `text` between <!-- marker --> and <!-- /marker --> of a Markdown file; a new file gets both."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    whole = path.read_text(encoding="utf-8") if path.exists() else begin + end + "\n"
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(end) < whole.index(begin):
        raise UserError(f"{path}: needs one line {begin.strip()} and, below it, one line {end}; the table goes between")
    head, rest = whole.split(begin)
    path.write_text(f"{head}{begin}{text}{end}{rest.split(end)[1]}", encoding="utf-8")
