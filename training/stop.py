"""Stopping a run without losing a step: SIGUSR1 asks for it, the next log point does it and leaves a checkpoint."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The run was asked to stop and has saved where it stands."""


@contextmanager
def on_request() -> Iterator[Callable[[], bool]]:
    """Within, SIGUSR1 does not kill. Yields a function that says whether it came."""
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGUSR1, before)
