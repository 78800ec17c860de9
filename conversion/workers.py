"""Items through worker processes and back in their own order, in bounded memory.

A worker that dies (killed for memory, crashed in a decoder) ends the run at once with one line. Workers end with their
parent, however that ended, because the socket between them does. A socket is all that they share: no semaphore and no
shared memory can outlive a kill.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import socket
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import resource_tracker

from conversion.encode import encode_or_refuse
from ffcv_ops.errors import UserError

ITEMS_PER_TASK = 8  # enough to hide the cost of a task (about 0.1 ms)
TASKS_PER_WORKER = 3  # running, waiting, or finished before their turn: this bounds the memory, in encoded samples
TASK_SECONDS = 600  # a source that does not answer for so long is gone


class Worker:
    """A process that applies `work` to items, and its tasks, the running one first: ranges of the items' numbers.

    A thread here receives the answers, so that the process need not wait until someone wants them, and puts them into
    `answers`: the worker, and a list of results, an error, or None when the process is gone.
    """

    def __init__(self, work, answers: queue.SimpleQueue):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "conversion.encode"])
        self.connection, child_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_end, work), daemon=True)
        resource_tracker.ensure_running()  # or its start, within that of the process, would unblock the signal
        try:
            with _interrupt_deferred():
                self.process.start()
        except (EOFError, OSError):  # the fork server was killed
            raise UserError(
                "a worker process died before its first image, perhaps for lack of memory; set data.workers lower"
            ) from None
        child_end.close()
        self.tasks = collections.deque()
        self.listener = threading.Thread(target=self._listen, args=(answers,), daemon=True)
        self.listener.start()

    def _listen(self, answers):
        while True:
            try:
                answers.put((self, self.connection.recv()))
            except (EOFError, OSError):
                return answers.put((self, None))
            except Exception as error:  # an answer that cannot be unpickled, or for which there is no memory
                return answers.put((self, error))

    def give(self, task: range, items):
        """Queues the items, whose numbers are those of `task`."""
        self.tasks.append(task)
        with contextlib.suppress(OSError):  # it died; what it had finished is received first
            self.connection.send(items)

    def end(self):
        self.process.kill()
        self.process.join()
        # The process may live on where the fork server was killed. The shutdown ends it, and wakes the listener.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
        self.listener.join()
        self.connection.close()


@contextlib.contextmanager
def _interrupt_deferred():
    """Ctrl-C waits for the end of the block, and no process that starts within sees it.

    The mask is for those processes. It is not enough for this one: another thread may take the signal, and Python would
    raise in the main thread, between a request to the fork server and its answer.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    is_main, interrupts = threading.current_thread() is threading.main_thread(), []
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True)) if is_main else None
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, before)
        if interrupts:
            signal.raise_signal(signal.SIGINT)


def next_answer(answers: queue.SimpleQueue, workers: Sequence[Worker]) -> tuple[range, list]:
    """Waits for the next finished task of any worker; returns it and its results. A `UserError` where a worker died or
    none answers."""
    try:
        worker, answer = answers.get(timeout=TASK_SECONDS)
    except queue.Empty:
        oldest = min((worker.tasks[0] for worker in workers if worker.tasks), key=lambda task: task.start)
        raise UserError(
            f"a worker process has not finished the images {oldest.start + 1} to {oldest.stop} for"
            f" {TASK_SECONDS // 60} minutes; check whether the source's disk answers"
        ) from None
    if answer is None and not worker.tasks:
        raise UserError("an idle worker process was killed, perhaps for lack of memory; set data.workers lower")
    task = worker.tasks.popleft()
    if answer is None or isinstance(answer, MemoryError):
        raise UserError(
            f"a worker process died on one of the images {task.start + 1} to {task.stop}, for lack of memory or on a"
            " damaged file; set data.workers lower, or look for that file"
        )
    if isinstance(answer, Exception):
        raise answer
    return task, answer


def encode_parallel(items: Sequence, encode, *, workers: int, numbers: range | None = None):
    """Yields what `encode` made of each item (a tuple of `Encoded`, or `Refused`), in the order of `items`; with
    `numbers`, of those items alone.

    `encode` and the items cross process borders, so they must pickle. Closing the generator ends the workers.
    """
    numbers = range(len(items)) if numbers is None else numbers
    starts = numbers[::ITEMS_PER_TASK]
    tasks = (range(start, min(start + ITEMS_PER_TASK, numbers.stop)) for start in starts)
    team, answers, waiting, results = [], queue.SimpleQueue(), collections.deque(), {}
    try:
        for _ in range(min(workers, len(starts))):
            team.append(Worker(encode, answers))
        for _ in starts:
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


def _serve(connection, work):
    """A worker's main loop. Tasks are received by a thread, so that the parent never waits until one is taken."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tasks = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    while True:
        items = tasks.get()
        try:
            answer = [encode_or_refuse(work, item) for item in items]
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        try:
            connection.send(answer)
        except OSError:
            os._exit(1)  # the parent is gone


def _receive(connection, tasks):
    while True:
        try:
            tasks.put(connection.recv())
        except BaseException:  # the parent is gone, or its message cannot be unpickled
            os._exit(1)
