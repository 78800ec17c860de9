"""Items through worker processes and back in their own order, in bounded memory.

A worker that dies (killed for memory, crashed in a decoder) ends the run at once with one line. Workers end with their
parent, however that ended, since the pipe between them does. Pipes are all that they share: no semaphore or shared
memory can outlive a kill.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait

from conversion.encode import encode_all
from ffcv_ops.errors import BadInput

ITEMS_PER_TASK = 8  # enough to hide the cost of a task (about 0.1 ms)
TASKS_PER_WORKER = 3  # at work, waiting, or finished before their turn: what bounds the memory, in encoded samples
LONGEST_TASK = 600  # seconds; a source that does not answer for so long is gone


class Worker:
    """A process, our end of the pipe to it, and its tasks, the one at work first: ranges of the items' numbers."""

    def __init__(self, context, encode):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, encode), daemon=True)
        self.process.start()
        theirs.close()
        self.tasks = collections.deque()


def encoded(items: Sequence, encode, *, workers: int, parts: Sequence[range] | None = None):
    """Yields what `encode` made of each item (a tuple of `Encoded`, or `Refused`), in the order of `items`; with
    `parts`, of the items in these ranges, one after the other.

    `encode` and the items cross process borders, so they must pickle. Closing the generator ends the workers.
    """
    parts = [range(len(items))] if parts is None else parts
    tasks = (range(at, min(at + ITEMS_PER_TASK, part.stop)) for part in parts for at in part[::ITEMS_PER_TASK])
    count = sum(-(-len(part) // ITEMS_PER_TASK) for part in parts)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "conversion.encode"])
    team = [Worker(context, encode) for _ in range(min(workers, count))]
    waiting, results = collections.deque(), {}
    try:
        for _ in range(count):
            for task in itertools.islice(tasks, len(team) * TASKS_PER_WORKER - len(waiting)):
                _give(min(team, key=lambda worker: len(worker.tasks)), task, items)
                waiting.append(task)
            task = waiting.popleft()
            while task not in results:
                for worker in _answering(team):
                    results[worker.tasks[0]] = _receive(worker)
                    worker.tasks.popleft()
            yield from results.pop(task)
    finally:
        for worker in team:
            worker.process.kill()
        for worker in team:
            worker.process.join()
            worker.connection.close()


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


def _answering(team):
    """The workers that have an answer, or are no more; waits for one."""
    busy = {worker.connection: worker for worker in team if worker.tasks}
    ready = wait(list(busy), LONGEST_TASK)
    if not ready:
        at = min((worker.tasks[0] for worker in busy.values()), key=lambda task: task.start)
        raise BadInput(
            f"a worker process has been at the images {at.start + 1} to {at.stop} for {LONGEST_TASK // 60} minutes;"
            " does the source's disk answer?"
        )
    return [busy[connection] for connection in ready]


def _give(worker, task, items):
    worker.tasks.append(task)
    with contextlib.suppress(OSError):  # it died; what it had finished is received first
        worker.connection.send(items[task.start : task.stop])


def _receive(worker):
    try:
        answer = worker.connection.recv()
    except (EOFError, OSError):
        _died(worker)
    if isinstance(answer, MemoryError):
        _died(worker)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _died(worker):
    at = worker.tasks[0]
    raise BadInput(
        f"a worker process died on one of the images {at.start + 1} to {at.stop}, for want of memory or on a damaged"
        " file; set data.workers lower, or look for that file"
    ) from None


def _work(connection, encode):
    """A worker's life. Tasks are received by a thread, so that the parent never waits until one is taken."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tasks = queue.SimpleQueue()
    threading.Thread(target=_take, args=(connection, tasks), daemon=True).start()
    while True:
        items = tasks.get()
        try:
            answer = encode_all(encode, items)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        try:
            connection.send(answer)
        except OSError:
            os._exit(1)  # the parent is no more


def _take(connection, tasks):
    while True:
        try:
            tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)
