"""Items through worker processes and back in their own order, in bounded memory.

A worker that dies (killed for memory, crashed in a decoder) ends the run at once with one line. Workers end with their
parent, however that ended, since the socket between them does. Sockets are all that they share: no semaphore or shared
memory can outlive a kill. A message is its pickle and, apart from it so that they are copied less often, the images.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import resource_tracker

from conversion.encode import encode_all
from ffcv_ops.errors import UserError

ITEMS_PER_TASK = 8  # enough to hide the cost of a task (about 0.1 ms)
TASKS_PER_WORKER = 3  # at work, waiting, or finished before their turn: what bounds the memory, in encoded samples
LONGEST_TASK = 600  # seconds; a source that does not answer for so long is gone
_COUNT = struct.Struct("<Q")


class Worker:
    """A process that makes of items what `work` makes of them, and its tasks, the one at work first: ranges of the
    items' numbers. A thread here receives what it answers, so that it need not wait for whoever wants it, and puts it
    into `answers`: the worker, and a list of results, an error, or None when it is no more."""

    def __init__(self, work, answers: queue.SimpleQueue):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "conversion.encode"])
        self.connection, theirs = socket.socketpair()
        self.process = context.Process(target=_live, args=(theirs, work), daemon=True)
        resource_tracker.ensure_running()  # or its start, within that of the process, would unblock the signal
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is started here never sees Ctrl-C
        try:
            self.process.start()
        except (EOFError, OSError):  # the process that starts them was killed
            said = "a worker process died before its first image, for want of memory perhaps; set data.workers lower"
            raise UserError(said) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self.tasks = collections.deque()
        self.listener = threading.Thread(target=self._listen, args=(answers,), daemon=True)
        self.listener.start()

    def _listen(self, answers):
        while True:
            try:
                answers.put((self, _received(self.connection)))
            except (EOFError, OSError):
                return answers.put((self, None))
            except Exception as error:  # an answer that cannot be taken apart, or for which there is no memory
                return answers.put((self, error))

    def give(self, task: range, items):
        """The items, whose numbers are those of `task`, are its next ones."""
        self.tasks.append(task)
        with contextlib.suppress(OSError):  # it died; what it had finished is received first
            _send(self.connection, items)

    def end(self):
        self.process.kill()
        self.process.join()
        with contextlib.suppress(OSError):  # the other side is closed already, unless who started it was killed
            self.connection.shutdown(socket.SHUT_RDWR)
        self.listener.join()
        self.connection.close()


def next_answer(answers: queue.SimpleQueue, team: Sequence[Worker]) -> tuple[range, list]:
    """A task that one of the workers has finished, and its results. Waits for it. A worker that is no more, or none
    that answers, is a `UserError`."""
    try:
        worker, answer = answers.get(timeout=LONGEST_TASK)
    except queue.Empty:
        at = min((worker.tasks[0] for worker in team if worker.tasks), key=lambda task: task.start)
        raise UserError(
            f"a worker process has been at the images {at.start + 1} to {at.stop} for {LONGEST_TASK // 60} minutes;"
            " does the source's disk answer?"
        ) from None
    if answer is None and not worker.tasks:
        raise UserError("a worker process that waited was killed, for want of memory perhaps; set data.workers lower")
    task = worker.tasks.popleft()
    if answer is None or isinstance(answer, MemoryError):
        raise UserError(
            f"a worker process died on one of the images {task.start + 1} to {task.stop}, for want of memory or on a"
            " damaged file; set data.workers lower, or look for that file"
        )
    if isinstance(answer, Exception):
        raise answer
    return task, answer


def encoded(items: Sequence, encode, *, workers: int, parts: Sequence[range] | None = None):
    """Yields what `encode` made of each item (a tuple of `Encoded`, or `Refused`), in the order of `items`; with
    `parts`, of the items in these ranges, one after the other.

    `encode` and the items cross process borders, so they must pickle. Closing the generator ends the workers.
    """
    parts = [range(len(items))] if parts is None else parts
    tasks = (range(at, min(at + ITEMS_PER_TASK, part.stop)) for part in parts for at in part[::ITEMS_PER_TASK])
    count = sum(-(-len(part) // ITEMS_PER_TASK) for part in parts)
    team, answers, waiting, results = [], queue.SimpleQueue(), collections.deque(), {}
    try:
        for _ in range(min(workers, count)):
            team.append(Worker(encode, answers))
        for _ in range(count):
            for task in itertools.islice(tasks, len(team) * TASKS_PER_WORKER - len(waiting)):
                min(team, key=lambda worker: len(worker.tasks)).give(task, items[task.start : task.stop])
                waiting.append(task)
            task = waiting.popleft()
            while task not in results:
                results.update([next_answer(answers, team)])
            yield from results.pop(task)
    finally:
        for worker in team:
            worker.end()


def _send(connection, message):
    images = []
    head = pickle.dumps(message, protocol=5, buffer_callback=lambda image: images.append(image.raw()))
    sizes = [len(head), *map(len, images)]
    connection.sendall(b"".join([_COUNT.pack(len(sizes)), struct.pack(f"<{len(sizes)}Q", *sizes), head, *images]))


def _received(connection):
    """The next message; `EOFError` when the other side is no more."""
    (count,) = _COUNT.unpack(_exactly(connection, _COUNT.size))
    sizes = struct.unpack(f"<{count}Q", _exactly(connection, 8 * count))
    content, parts = _exactly(connection, sum(sizes)), []
    for size in sizes:
        parts.append(content[:size])
        content = content[size:]
    head, *images = parts
    return pickle.loads(head, buffers=images)


def _exactly(connection, size) -> memoryview:
    content = memoryview(bytearray(size))
    place = 0
    while place < size:
        received = connection.recv_into(content[place:])
        if not received:
            raise EOFError
        place += received
    return content


def _live(connection, work):
    """A worker's life. Tasks are received by a thread, so that the parent never waits until one is taken."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tasks = queue.SimpleQueue()
    threading.Thread(target=_take, args=(connection, tasks), daemon=True).start()
    while True:
        items = tasks.get()
        try:
            answer = encode_all(work, items)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        try:
            _send(connection, answer)
        except OSError:
            os._exit(1)  # the parent is no more


def _take(connection, tasks):
    while True:
        try:
            tasks.put(_received(connection))
        except BaseException:  # the parent is no more, or what it says cannot be understood
            os._exit(1)
