"""CUDA's streams without a GPU: what a loader hands to the device happens later, in the order that CUDA promises.

A stream is a thread that does what it is given, one thing after the other. A copy reads its source when the stream
gets to it, as a copy engine does, and a step of training sleeps. Device memory that an epoch has freed is given to the
next one at once, as torch's caching allocator gives it.
"""

import contextlib
import queue
import threading
import time
from types import SimpleNamespace

import torch
from ffcv.loader import epoch_iterator
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.transforms import ToDevice

from ffcv_ops import prefetch

CUDA = torch.device("cuda")
_of_this_thread = threading.local()


class Stream:
    def __init__(self):
        self.work = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            self.work.get()()

    def wait_event(self, event):
        self.work.put(event.done.wait)

    def wait_stream(self, other):
        self.wait_event(Event().record(other))

    def synchronize(self):
        Event().record(self).synchronize()

    def is_capturing(self):
        return False


class Event:
    def __init__(self):
        self.done = None

    def record(self, stream=None):
        self.done = threading.Event()
        (stream or current_stream()).work.put(self.done.set)
        return self

    def wait(self, stream=None):
        (stream or current_stream()).wait_event(self)

    def synchronize(self):
        assert self.done.wait(60), "the emulated device stands still"


_main = Stream()


def current_stream():
    return getattr(_of_this_thread, "stream", _main)


@contextlib.contextmanager
def _stream(stream):
    _of_this_thread.stream = stream
    try:
        yield
    finally:
        del _of_this_thread.stream


class _Upload(ToDevice):
    """FFCV's `ToDevice`, to memory that only the emulated device looks at."""

    def declare_state_and_memory(self, previous_state):
        return previous_state, AllocationQuery(previous_state.shape, previous_state.dtype, torch.device("cpu"))

    def generate_code(self):
        def to_device(source, target):
            target = target[: len(source)]
            current_stream().work.put(lambda: target.copy_(source))
            return target

        return to_device


def install(monkeypatch):
    """From now on FFCV's iterators see the emulated CUDA, and loaders for the device `CUDA` copy to it."""
    monkeypatch.setattr(epoch_iterator, "IS_CUDA", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_stream", current_stream)  # torch's AdamW asks whether it captures
    cuda = SimpleNamespace(Stream=Stream, Event=Event, current_stream=current_stream, stream=_stream)
    monkeypatch.setattr(epoch_iterator, "ch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(prefetch, "ToDevice", _Upload)
    given, allocate = {}, prefetch._Graph.allocate_memory

    def allocate_memory(graph, batch, slots):
        memory = allocate(graph, batch, slots)
        for node, query in memory["queries"].items():
            if query.device is not None:
                memory["operation"][node] = given.setdefault((node, query), memory["operation"][node])
        return memory

    monkeypatch.setattr(prefetch._Graph, "allocate_memory", allocate_memory)


class Device:
    """A device that takes `seconds` for a step, and a host that is at most `lag` steps ahead of it (None: any)."""

    def __init__(self, lag, seconds=0.0):
        self.lag, self.seconds, self.steps, self.seen = lag, seconds, [], []

    def step(self, *batch):
        """Hands over a step on these tensors; `seen` gets copies of them once it is done."""

        def work():
            time.sleep(self.seconds)
            self.seen.append(tuple(tensor.clone() for tensor in batch))

        _main.work.put(work)
        self.steps.append(Event().record())
        if self.lag is not None and len(self.steps) > self.lag:
            self.steps[-self.lag - 1].synchronize()

    def finish(self):
        """Waits for all steps; returns the batches as the device saw them."""
        _main.synchronize()
        return self.seen


@contextlib.contextmanager
def device_is_busy():
    """With this, no step begins before the block is left."""
    free = threading.Event()
    _main.work.put(free.wait)
    try:
        yield
    finally:
        free.set()
