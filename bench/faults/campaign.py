"""Faults and what became of them; cases in processes of their own, each with a time limit.

The process of the campaign has imported everything and starts no thread, so that a case costs a fork instead of ten
seconds of imports.
"""

import contextlib
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = ("detected", "harmless", "silent", "hang", "crash", "lost")
FAILURES = OUTCOMES[2:]
OURS, STOCK = "ours", "stock"


class Fault(NamedTuple):
    """One injected fault. `outcome`, one of OUTCOMES: a clear error; the right result all the same; a wrong result
    without a word; no end within the limit; a signal or a traceback; work or files lost. `note`: what was seen."""

    who: str
    name: str
    outcome: str
    note: str = ""


class Figure(NamedTuple):
    """A measured quantity that is no count of faults. `most`: what it may be; None where it is only told."""

    who: str
    name: str
    value: float
    unit: str
    most: float | None = None


class Ended(NamedTuple):
    """A process that came to its end: what its function returned, its exit status (minus the signal's number when one
    killed it, None when the limit did), and all that it printed."""

    value: object
    status: int | None
    text: str

    @property
    def last_line(self) -> str:
        lines = self.text.strip().splitlines()
        return lines[-1] if lines else ""


class Child:
    """A forked process that leads a group of its own and runs `function(*arguments)`."""

    def __init__(self, function: Callable, *arguments):
        self.answer, self.output = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(function, arguments)
        self.descriptor = os.pidfd_open(self.pid)

    def _work(self, function, arguments):
        status = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for stream in (1, 2):
                os.dup2(self.output.fileno(), stream)
            pickle.dump(function(*arguments), self.answer)
            self.answer.flush()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        return bool(select.select([self.descriptor], [], [], max(seconds, 0))[0])

    def signal(self, number: int):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> Ended:
        """Kills what is left of the group, and says how the process ended."""
        finished = self.wait(0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) if finished else self._reap()
        os.close(self.descriptor)
        value = None
        self.answer.seek(0)
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            value = pickle.load(self.answer)
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        self.answer.close()
        self.output.close()
        return Ended(value, status, text)

    def _reap(self):
        os.waitpid(self.pid, 0)


def forked(function: Callable, *arguments, limit: float) -> Ended:
    """`function(*arguments)` in a process of its own, killed after `limit` seconds."""
    child = Child(function, *arguments)
    child.wait(limit)
    return child.end()


def each(cases: Iterable[tuple], function: Callable, *, limit: float, at_once: int) -> Iterator[tuple[tuple, Ended]]:
    """Yields (case, how it ended) of `function(*case)` in a process for each case, `at_once` of them at a time."""
    waiting, running = iter(cases), []
    while True:
        while len(running) < at_once and (case := next(waiting, None)) is not None:
            running.append((case, Child(function, *case), time.monotonic() + limit))
        if not running:
            return
        first_deadline = min(deadline for _, _, deadline in running)
        descriptors = [child.descriptor for _, child, _ in running]
        select.select(descriptors, [], [], max(first_deadline - time.monotonic(), 0))
        for entry in list(running):
            case, child, deadline = entry
            if child.wait(0) or time.monotonic() >= deadline:
                running.remove(entry)
                yield case, child.end()


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
