"""Items through worker processes and back in their own order, in bounded memory.

A worker that dies (killed for memory, crashed in a decoder) ends the run at once with one line. Workers end with their
parent, however that ended.
"""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

from conversion.encode import encode_all
from ffcv_ops.errors import BadInput

ITEMS_PER_TASK = 8  # enough to hide the cost of a task (about 0.1 ms)
TASKS_PER_WORKER = 3  # one at work, two waiting: what bounds the memory, in encoded samples


def encoded(items, encode, *, workers: int):
    """Yields what `encode` made of each item (a tuple of `Encoded`, or `Refused`), in the order of `items`.

    `encode` and the items cross process borders, so they must pickle. Closing the generator stops the workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conversion.encode"])
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    starts = iter(range(0, len(items), ITEMS_PER_TASK))
    start, waiting = 0, collections.deque()

    def submit_next():
        first = next(starts, None)
        if first is not None:
            waiting.append((first, pool.submit(encode_all, encode, items[first : first + ITEMS_PER_TASK])))

    try:
        for _ in range(workers * TASKS_PER_WORKER):
            submit_next()
        while waiting:
            start, future = waiting.popleft()
            results = future.result()
            submit_next()
            yield from results
    except (BrokenProcessPool, MemoryError):
        last = min(len(items), start + workers * TASKS_PER_WORKER * ITEMS_PER_TASK)
        raise BadInput(
            f"a worker process died on one of the images {start + 1} to {last}, for want of memory or on a damaged"
            " file; set data.workers lower, or look for that file"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


def _begin_worker():
    """Ctrl-C is the parent's to handle; a parent that was killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
