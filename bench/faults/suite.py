"""Faults and what became of them; cases in processes of their own, each with a time limit."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bench.processes import Process

OUTCOMES = ("detected", "harmless", "silent", "hang", "crash", "lost")
FAILURES = OUTCOMES[2:]


class Fault(NamedTuple):
    """One injected fault. `outcome`, one of OUTCOMES: a clear error; the right result all the same; a wrong result
    without a word; no end within the limit; a signal or a traceback; work or files lost. `note`: what was seen."""

    name: str
    outcome: str
    note: str = ""


class Figure(NamedTuple):
    """A measured quantity that is no count of faults."""

    name: str
    value: float
    unit: str


class Ended(NamedTuple):
    """A process that came to its end: what its function returned, its exit status (minus the signal's number when one
    killed it, None when the limit did), and what it printed."""

    value: object
    status: int | None
    text: str

    @property
    def last_line(self) -> str:
        lines = self.text.strip().splitlines()
        return lines[-1] if lines else ""


def finished(process: Process, limit: float) -> Ended:
    """Waits until it ends, `limit` seconds at most; kills it and what is left of its group."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=limit)
    status = process.poll()
    process.kill_group()
    return Ended(process.value, status, "".join(process.communicate(timeout=limit)))


def each(cases: list[tuple], function: Callable) -> Iterator[tuple[tuple, object]]:
    """Yields (case, function(*case)), two of them at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield from zip(cases, pool.map(lambda case: function(*case), cases), strict=True)


def judged(ended: Ended, *, right: Callable[[object], bool]) -> tuple[str, str]:
    """(outcome, note) of a command of ours, or of code that raises `UserError`: one line and status 2 is detected, a
    traceback is a crash, and what returns must be `right`."""
    if ended.status is None:
        return "hang", ended.last_line
    if ended.status == 2:
        return "detected", ended.last_line
    if ended.status != 0:
        return "crash", f"status {ended.status}: {ended.last_line}"
    return ("harmless", "") if right(ended.value) else ("silent", f"{ended.value!r:.80}")
