"""Stopping a run without losing a step: SIGUSR1, or SIGTERM as schedulers send it before they take a machine away, asks
for it; all ranks stop after the same step, that under way or the next, and leave a checkpoint.

A log point may be minutes away, so the ranks agree after each step: each starts a sum of one number on the hosts, and
waits for the one that it started a step ago, which is there already. No device takes part.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # where ranks got different ones, the later in this list counts


class Stopped(Exception):
    """The run was asked to stop and has saved where it stands. Its argument is the signal."""


@contextmanager
def on_request() -> Iterator[Callable[[], signal.Signals | None]]:
    """Within, SIGTERM and SIGUSR1 do not kill. Yields a function that all ranks call once a step and that says, at the
    same step to all, whether one of them was asked to stop: the signal, or None."""
    came = [0]  # 1 + place in SIGNALS

    def note(number, frame):
        came[0] = max(came[0], 1 + SIGNALS.index(number))

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield _agreeing(came) if distributed.is_initialized() else lambda: _named(came[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _named(code):
    return SIGNALS[code - 1] if code else None


def _agreeing(came):
    group, started = distributed.new_group(backend="gloo"), []

    def asked():
        code = torch.tensor(came[0])
        started.append((distributed.all_reduce(code, distributed.ReduceOp.MAX, group=group, async_op=True), code))
        if len(started) == 1:
            return None
        work, code = started.pop(0)
        work.wait()
        return _named(int(code))

    return asked
