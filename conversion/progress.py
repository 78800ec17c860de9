"""The progress of a conversion on standard error: a bar on a terminal, a line every few seconds in a log."""

import contextlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10


@contextlib.contextmanager
def progress(label: str, total: int, unit: str = "images"):
    """Gives a function to call once per finished `unit`, or with `found` for units that an earlier run has finished,
    which do not count for the speed."""
    console = Console(stderr=True)
    with _bar(console, label, total, unit) if console.is_terminal else _lines(label, total, unit) as show:
        began, done, earlier = time.monotonic(), 0, 0

        def advance(count=1, *, found=0):
            nonlocal done, earlier
            done, earlier = done + count + found, earlier + found
            show(done, (done - earlier) / max(time.monotonic() - began, 1e-9))

        yield advance


@contextlib.contextmanager
def _bar(console, label, total, unit):
    speed = TextColumn("{task.fields[rate]:,.0f} " + f"{unit}/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, rate=0.0)
        yield lambda done, rate: bar.update(task, completed=done, rate=rate)


@contextlib.contextmanager
def _lines(label, total, unit):
    last = time.monotonic()

    def show(done, rate):
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last, left = now, (total - done) / max(rate, 1e-9)
            print(f"{label}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {left:,.0f} s left", file=sys.stderr)

    yield show
