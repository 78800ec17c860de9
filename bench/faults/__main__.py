"""The fault suite: what is injected, what is noticed, what is lost.

    python -m bench.faults [--quick] [--only betons,writer] [--json FILE] [--markdown docs/reliability.md]

detected   one line and exit status 2; a run that was stopped goes on to the same weights
harmless   the right result all the same
silent     a wrong result without a word
hang       no end within the case's limit, or processes that stay
crash      a signal or a traceback
lost       work, a file or memory that is gone

Ends with status 1 when any of the last four happened. The whole suite takes about a quarter of an hour on two cores;
--quick takes a part of the cases. With --only and an old --json file, the other groups' results are kept; each row says
when and at which commit it was measured. Stock FFCV was measured once: bench/results/faults_stock.json.
"""

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import machine, report
from bench.faults import betons, kills, memory, odd_files, removals, writer
from bench.faults.suite import FAILURES, OUTCOMES, Fault, Figure
from bench.processes import ROOT, Server
from bench.report import chosen, say
from config.parser import Parser
from ffcv_ops.errors import exits_cleanly

MARKER = "bench.faults"
STOCK = report.RESULTS / "faults_stock.json"


class Group(NamedTuple):
    """`goal`: its line in the table of docs/reliability.md. `run(folder, server, quick=...)`: faults and figures."""

    goal: str
    run: Callable[..., list[Fault | Figure]]


GROUPS = {
    "writer": Group(
        "conversions killed and interrupted: nothing half-written, nothing left behind, an older file kept, the same "
        "bytes after a restart", writer.run,
    ),
    "betons": Group("damaged .beton files: no wrong sample", betons.run),
    "kills": Group("a run killed: at most one checkpoint interval redone, the same bits in the end", kills.run),
    "files": Group(
        "pipes, folders, devices, holes and dead links where a file is expected: named, never waited for", odd_files.run
    ),
    "removals": Group("files removed and a disk filled, before, between and under runs", removals.run),
    "memory": Group("200 epochs, left early or read to the end: no memory, thread or file kept", memory.run),
}  # fmt: skip
OF_STOCK = {  # groups of the suite that measured it; ours is asked this by tests, or by other cases
    "sources": "bad source images: converted, or left out and named, within 60 s",
    "writer": "conversions killed, interrupted, out of space: nothing half-written, nothing left behind",
    "betons": GROUPS["betons"].goal,
    "memory": "30 epochs, left early or read to the end: no memory, thread or file kept",
    "loading": "the same pixels again; an operation that raises is heard of within 5 s",
    "saving": "kills while torch.save overwrites the only checkpoint, as in the official code; flipped bits in it",
    "evaluation": "evaluation on 1, 2, 3 and 7 ranks: each image once",
}


def measure(names: list[str], *, quick: bool) -> tuple[list[dict], list[tuple[str, Fault]]]:
    """Rows of the groups `names`, and what failed."""
    rows, failed, server = [], [], Server()
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults") as folder:
            found = GROUPS[name].run(Path(folder), server, quick=quick)
        rows += rows_of(name, found)
        bad = [item for item in found if isinstance(item, Fault) and item.outcome in FAILURES]
        failed += [(name, fault) for fault in bad]
        count = sum(isinstance(item, Fault) for item in found)
        say(f"{name}: {count} faults, {len(bad)} failures, {time.monotonic() - began:.0f} s")
        for fault in bad:
            say(f"  {fault}")
    server.close()
    return rows, failed


def rows_of(name: str, found: list[Fault | Figure]) -> list[dict]:
    """One row for each outcome, one for each figure."""
    counts = Counter(item.outcome for item in found if isinstance(item, Fault))
    rows = [report.row(name, outcome, counts[outcome], "faults") for outcome in OUTCOMES]
    return rows + [report.row(name, item.name, item.value, item.unit) for item in found if isinstance(item, Figure)]


def merged(path: Path, rows: list[dict]) -> list[dict]:
    """`rows` and, in the order of the groups, those of the other groups in `path`."""
    rows = [row for row in report.merged(path, rows) if row["task"] in GROUPS]
    return sorted(rows, key=lambda row: list(GROUPS).index(row["task"]))


def commit() -> str:
    """Of this code, with a word where files were changed since."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip() or "no commit"


def table(title: str, goals: dict[str, str], rows: list[dict]) -> report.Grid:
    """The counts of each group that has any, and their sums."""
    counts = {(row["task"], row["name"]): int(row["value"]) for row in rows if row["unit"] == "faults"}
    measured, lines, total = {row["task"]: row["measured"] for row in rows}, [], [0] * (1 + len(OUTCOMES))
    for name, goal in goals.items():
        if name in measured:
            numbers = [counts[name, outcome] for outcome in OUTCOMES]
            numbers = [sum(numbers), *numbers]
            lines.append([goal, *map(str, numbers), measured[name]])
            total = [one + other for one, other in zip(total, numbers, strict=True)]
    lines.append(["all", *map(str, total), ""])
    return report.Grid(title, ["what must hold", "injected", *OUTCOMES, "measured"], lines)


def grids(rows: list[dict], stock: list[dict]) -> list[report.Grid]:
    goals = {name: group.goal for name, group in GROUPS.items()}
    figures = [[whose, row["name"], f"{row['value']:.1f} {row['unit']}"]
               for whose, some in (("ours", rows), ("stock FFCV", stock)) for row in some
               if row["unit"] != "faults"]  # fmt: skip
    return [
        table("Faults", goals, rows),
        table("Stock FFCV, measured once (commit 3f9e368 can repeat it)", OF_STOCK, stock),
        report.Grid("Memory of the loader", ["", "", "measured"], figures),
    ]


def parse(argv):
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of the cases: about a minute")
    parser.add_argument("--only", metavar="A,B", help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--markdown", type=report.marked(MARKER), help=f"put the tables between its <!-- {MARKER} -->")
    options = parser.parse_args(argv)
    options.only = chosen("group", options.only, GROUPS, GROUPS)
    return options


@exits_cleanly
def main(argv=None):
    options = parse(argv)
    about = machine.describe()
    rows, failed = measure(options.only, quick=options.quick)
    rows = [row | {"measured": f"{about['date']}, {commit()}"} for row in rows]
    if options.json:
        rows = merged(options.json, rows)
        report.write_json(options.json, about, rows)
    tables = grids(rows, report.read_json(STOCK)[1])
    report.show(tables[0])
    if options.markdown:
        report.put_into(options.markdown, MARKER, tables, about)
    if failed:
        say(f"{len(failed)} failures")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
