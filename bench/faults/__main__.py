"""A campaign of faults: what is injected, what is noticed, what is lost. Ours beside stock FFCV.

    python -m bench.faults [--quick] [--only betons writer] [--json FILE] [--markdown docs/reliability.md]

detected   a clear error or, for ours, one line and exit status 2; a run that was stopped goes on to the same weights
harmless   the right result all the same
silent     a wrong result without a word
hang       no end within the case's limit, or processes that stay
crash      a signal or, for ours, a traceback
lost       work, a file or memory that is gone

Ends with status 1 when any of the last four happened to ours. Stock FFCV gets the faults that apply to it, fewer where
each of them takes long; for checkpoints, which it does not have, its column is torch.save in place, as the official
code saves. A full campaign takes about twenty minutes on two cores; --quick takes a part of the cases, of ours alone.
With --only and an old --json file, the other groups' results are kept; each row says when and at which commit it
was measured.
"""

import argparse
import importlib
import os
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"  # read at import: this process forks, and must not have threads at work

from bench import machine, report  # noqa: E402
from bench.command import chosen, say  # noqa: E402
from bench.faults import (  # noqa: E402
    betons,
    campaign,
    evaluation,
    hostile,
    kills,
    loading,
    memory,
    recipes,
    removals,
    saving,
    sources,
    stops,
    writer,
)
from bench.faults.campaign import FAILURES, OURS, OUTCOMES, ROOT, STOCK, Fault, Figure  # noqa: E402
from ffcv_ops.errors import UserError, exits_cleanly  # noqa: E402

MARKER = "bench.faults"
COMPILING = 900  # seconds; a minute on a quiet machine


class Group(NamedTuple):
    """`goal`: what the table of docs/reliability.md says of it. `run(folder, quick=...)`: faults and figures."""

    goal: str
    run: object


GROUPS = {
    "sources": Group("bad source images: converted, or left out and named, within 60 s", sources.run),
    "writer": Group("conversions killed, interrupted, out of space, two at once: nothing half-written, nothing left "
                    "behind, an older file kept, the same bytes after a restart", writer.run),
    "betons": Group("damaged .beton files: no wrong sample", betons.run),
    "loading": Group("the same pixels from 1 and 2 threads, on 1, 2 and 4 ranks, again; an operation that raises is "
                     "heard of within 5 s", loading.run),
    "saving": Group("kills while a checkpoint is saved, flipped bits in checkpoints: the one before is used",
                    saving.run),
    "stops": Group("a run stopped at random steps of all stages: the same bits in the end", stops.run),
    "kills": Group("SIGKILL from the images to the weights: at most one checkpoint interval redone, the same bits in "
                   "the end", kills.run),
    "evaluation": Group("evaluation on 1, 2, 3 and 7 ranks: each image once, the same top-1", evaluation.run),
    "removals": Group("files removed and a disk filled, before, between and under runs", removals.run),
    "memory": Group("200 epochs, left early or read to the end: no memory, thread or file kept", memory.run),
    "recipes": Group("recipes and command lines with a mistake: refused with file, key and what is allowed",
                     recipes.run),
    "hostile": Group("hostile files: nothing run, nothing written outside of the run folder", hostile.run),
}  # fmt: skip


def measure(names: list[str], *, quick: bool) -> tuple[list[dict], list[tuple[str, Fault]]]:
    """Rows of the groups `names`, and what failed of ours."""
    rows, failed = [], []
    warm_up(quick=quick)
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults") as folder:
            found = GROUPS[name].run(Path(folder), quick=quick)
        rows += rows_of(name, found)
        bad = [fault for fault in found if _fails(fault)]
        failed += [(name, fault) for fault in bad]
        ours = sum(isinstance(item, Fault) and item.who == OURS for item in found)
        say(f"{name}: {ours} faults for ours, {len(bad)} failures, {time.monotonic() - began:.0f} s")
        for fault in bad:
            say(f"  {fault}")
    return rows, failed


def warm_up(*, quick: bool):
    """What the cases would have to import and compile, without starting a thread: our kernels go to their cache on the
    disk, and Numba has compiled FFCV's once, after which it does so faster."""
    for module in ("train_imagenet", "ffcv.writer", "torchvision.datasets"):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        data = betons.write(Path(folder))
        for read in (betons.read_ours, loading.read_ours):
            campaign.forked(read, data, limit=COMPILING)
        if not quick:
            betons.stock_loader(data)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 2:  # Numba's pool has one for two cores, which waits for work that never comes
        raise UserError(f"this process has {threads} threads after its imports and must not fork")


def rows_of(name: str, found: list[Fault | Figure]) -> list[dict]:
    """One row for each outcome of each contender, one for each figure."""
    rows = []
    for who in (OURS, STOCK):
        counts = Counter(fault.outcome for fault in found if isinstance(fault, Fault) and fault.who == who)
        if counts:
            rows += [report.row(name, f"{who}: {outcome}", [counts[outcome]], "faults") for outcome in OUTCOMES]
    figures = (item for item in found if isinstance(item, Figure))
    return rows + [report.row(name, f"{item.who}: {item.name}", [item.value], item.unit) for item in figures]


def merged(path: Path, rows: list[dict]) -> list[dict]:
    """`rows` and, in the order of the groups, those of the other groups in `path`; ones that do not say when they were
    measured are as old as the file."""
    before, kept = report.read_json(path) if path.exists() else ({}, [])
    new = {row["task"] for row in rows}
    kept = [{"measured": before["date"]} | row for row in kept if row["task"] not in new and row["task"] in GROUPS]
    return sorted(kept + rows, key=lambda row: list(GROUPS).index(row["task"]))


def commit() -> str:
    """Of this code, with a word where files were changed since."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip() or "no commit"


def _fails(item: Fault | Figure) -> bool:
    return isinstance(item, Fault) and item.who == OURS and item.outcome in FAILURES


def tables(rows: list[dict]) -> list[report.Grid]:
    """The counts of ours and stock by group, and the figures."""
    counts = {(row["task"], row["name"]): int(row["value"]) for row in rows if row["unit"] == "faults"}
    measured = {row["task"]: row["measured"] for row in rows}
    lines, total = [], Counter()
    for name, group in GROUPS.items():
        for who in (OURS, STOCK):
            numbers = [counts.get((name, f"{who}: {outcome}")) for outcome in OUTCOMES]
            if None not in numbers:
                said = (group.goal, measured[name]) if who == OURS else ("", "")
                lines.append([said[0], who, *map(str, [sum(numbers), *numbers]), said[1]])
                total.update({(who, column): number for column, number in enumerate([sum(numbers), *numbers])})
    for who in (OURS, STOCK) if total[STOCK, 0] else (OURS,):
        lines.append(["all" if who == OURS else "", who, *(str(total[who, k]) for k in range(len(OUTCOMES) + 1)), ""])
    figures = [[row["name"], f"{row['value']:.1f} {row['unit']}"] for row in rows if row["unit"] != "faults"]
    return [
        report.Grid("Faults", ["what must hold", "", "injected", *OUTCOMES, "measured"], lines),
        report.Grid("Memory of the loader", ["", "measured"], figures),
    ]


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part of the cases, of ours alone: about a minute")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--markdown", type=Path, help=f"put the tables into this file, between <!-- {MARKER} --> marks")
    options = parser.parse_args(argv)
    options.only = chosen("group", ",".join(options.only or ()), GROUPS, GROUPS)
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
    grids = [grid for grid in tables(rows) if grid.lines]
    for grid in grids:
        report.show(grid)
    if options.markdown:
        report.put_into(options.markdown, MARKER, grids, about)
    if failed:
        say(f"{len(failed)} failures of ours")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
