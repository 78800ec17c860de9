"""How far a conversion is: a bar on a terminal, a line now and then in a log. Both go to standard error."""

import contextlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10


@contextlib.contextmanager
def progress(label: str, total: int, unit: str = "images"):
    """Gives a function to be called once per finished `unit`."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console, unit) as bar:
            task = bar.add_task(label, total=total, rate=0.0)
            began = time.monotonic()

            def one_more():
                done = bar.tasks[0].completed + 1
                bar.update(task, completed=done, rate=done / (time.monotonic() - began))

            yield one_more
    else:
        yield _lines(label, total, unit)


def _bar(console, unit):
    speed = TextColumn("{task.fields[rate]:,.0f} " + f"{unit}/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    return Progress(*columns, console=console)


def _lines(label, total, unit):
    began = last = time.monotonic()
    done = 0

    def one_more():
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last, rate = now, done / (now - began)
            left = (total - done) / rate
            print(f"{label}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {left:,.0f} s left", file=sys.stderr)

    return one_more
