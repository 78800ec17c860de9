"""What the benchmarks share: progress, options that are lists, and results: rows -> JSON, tables, Markdown files."""

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from bench import machine
from config.text import markdown_table
from ffcv_ops.errors import UserError

RESULTS = Path(__file__).parent / "results"


class Grid(NamedTuple):
    """A table of text. The first column names the rows."""

    title: str
    header: list[str]
    lines: list[list[str]]


def say(words: str):
    """Progress, which is not part of the results."""
    print(words, file=sys.stderr, flush=True)


def chosen(kind: str, words: str | None, known, default) -> list[str]:
    """The names in "A,B", each of which must be `known`; the default where nothing is given."""
    if not words:
        return list(default)
    for name in words.split(","):
        if name not in known:
            raise UserError(f"{name!r} is not a {kind} here; there are {', '.join(known)}")
    return words.split(",")


def row(task: str, name: str, values: float | list[float], unit: str, *, most: float | None = None) -> dict:
    """The median of `values` and their range, or one value. most: the largest that is right, where one can tell."""
    values = values if isinstance(values, list) else [values]
    middle, low, high = statistics.median(values), min(values), max(values)
    found = {"task": task, "name": name, "value": middle, "unit": unit, "lo": low, "hi": high, "n": len(values)}
    return found if most is None else found | {"most": most}


def spread(row: dict | None, form: str = ",.0f") -> str:
    """A row's median with its range, as a cell."""
    return "-" if row is None else f"{row['value']:{form}} ({row['lo']:{form}}-{row['hi']:{form}})"


def write_json(path: Path, about: dict, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[dict, list[dict]]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return results["machine"], results["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the JSON of a benchmark ({error!r}); run it again with --json {path}") from None


def merged(path: Path, rows: list[dict]) -> list[dict]:
    """The rows that a file has of other tasks, if there is one, and `rows`."""
    tasks = {row["task"] for row in rows}
    kept = read_json(path)[1] if path.exists() else []
    return [row for row in kept if row["task"] not in tasks] + rows


def markdown(grid: Grid) -> str:
    return markdown_table([grid.header, *grid.lines], left=1) + "\n"


def show(grid: Grid):
    print(f"{grid.title}\n\n{markdown(grid)}")


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


def marked(marker: str) -> Callable[[str], Path]:
    """For argparse: a Markdown file that has the marks, looked at before anything is measured."""

    def checked(name):
        _around(Path(name), marker)
        return Path(name)

    return checked


def replace_between(path: Path, marker: str, text: str):
    """Puts `text` between <!-- marker --> and <!-- /marker --> of a Markdown file, which must have both."""
    head, tail = _around(path, marker)
    path.write_text(f"{head}{text}{tail}", encoding="utf-8")


def _around(path, marker):
    """What stands before and behind the text between the marks, with these."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    whole = path.read_text(encoding="utf-8") if path.is_file() else ""
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(end) < whole.index(begin):
        raise UserError(f"{path}: needs one line {begin.strip()} and, below it, one line {end}; the table goes between")
    head, rest = whole.split(begin)
    return head + begin, end + rest.split(end)[1]
