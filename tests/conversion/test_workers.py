"""Order, bounded memory and the death of workers. Items are calls, `operator.call` makes them in the workers."""

import functools
import io
import operator
import os
import re
import signal
import subprocess
import threading
import time
from multiprocessing.context import ForkServerProcess

import pytest

from conversion import formats
from conversion.encode import Refused
from conversion.rgb import read_rgb
from conversion.workers import ITEMS_PER_TASK, TASKS_PER_WORKER, encode_parallel
from ffcv_ops.errors import UserError


def say(number, *, seconds=0.0):
    return functools.partial(subprocess.check_output, ["sh", "-c", f"sleep {seconds}; echo {number}"])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers):
    """The first items of each task are the slowest, so later tasks finish first."""
    items = [say(k, seconds=0.3 if k in (0, 17) else 0) for k in range(30)]
    assert [int(text) for text in encode_parallel(items, operator.call, workers=workers)] == list(range(30))


@pytest.mark.timeout(60)
def test_bad_input_is_a_result():
    items = [say(1), functools.partial(read_rgb, io.BytesIO(b"text")), say(3)]
    assert list(encode_parallel(items, operator.call, workers=1)) == [
        b"1\n",
        Refused(f"is not an image (known formats: {formats.NAMES})"),
        b"3\n",
    ]


@pytest.mark.timeout(60)
def test_an_error_of_ours_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(encode_parallel([functools.partial(divmod, 1, 0)], operator.call, workers=1))


@pytest.mark.timeout(60)
def test_an_interrupt_waits_until_a_worker_is_started(monkeypatch):
    """It is raised behind the start, not between a request to the fork server and its answer, whichever thread of the
    process takes the signal: another one is there that does not mask it."""
    whole, started = ForkServerProcess._Popen, []

    def interrupted(process):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        started.append(whole(process))
        return started[0]

    monkeypatch.setattr(ForkServerProcess, "_Popen", staticmethod(interrupted))
    other = threading.Thread(target=time.sleep, args=(1,))
    other.start()
    with pytest.raises(KeyboardInterrupt):
        list(encode_parallel([say(1)], operator.call, workers=1))
    assert started
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other.join()


class Calls:
    """A list of cheap calls that notes how far it was read."""

    furthest = 0

    def __len__(self):
        return 2000

    def __getitem__(self, part):
        self.furthest = part.stop
        return [functools.partial(divmod, number, 1) for number in range(*part.indices(len(self)))]


@pytest.mark.timeout(60)
def test_a_slow_consumer_holds_the_workers_back():
    items = Calls()
    ahead = 2 * TASKS_PER_WORKER * ITEMS_PER_TASK + ITEMS_PER_TASK
    for number, result in enumerate(encode_parallel(items, operator.call, workers=2)):
        assert result == (number, 0)
        assert items.furthest <= number + 1 + ahead
    assert number == 1999


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", [0, 40, 99])
def test_a_dying_worker_ends_the_run_quickly(place):
    items = [functools.partial(divmod, number, 1) for number in range(100)]
    items[place] = functools.partial(os._exit, 1)
    began = time.monotonic()
    with pytest.raises(UserError, match="a worker process died") as caught:
        list(encode_parallel(items, operator.call, workers=2))
    first, last = map(int, re.search(r"images (\d+) to (\d+)", str(caught.value)).groups())
    assert first <= place + 1 <= last
    assert time.monotonic() - began < 20


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_while_it_waits():
    """The first worker has the last tasks but for one, and nothing to do after them."""
    items = [functools.partial(os.getpid)] * ITEMS_PER_TASK + [functools.partial(time.sleep, 1)] * ITEMS_PER_TASK
    results = encode_parallel(items, operator.call, workers=2)
    os.kill(next(results), signal.SIGKILL)
    with pytest.raises(UserError, match="an idle worker process was killed"):
        list(results)


class Stubborn(Exception):
    """It can be pickled and not taken apart again."""

    def __init__(self, first, second):
        super().__init__(first)


def stubborn():
    raise Stubborn(1, 2)


@pytest.mark.timeout(60)
def test_an_answer_that_cannot_be_taken_apart():
    with pytest.raises(TypeError, match="second"):
        list(encode_parallel([stubborn], operator.call, workers=1))


@pytest.mark.timeout(60)
def test_closing_stops_the_workers():
    """A consumer that fails does not wait for the rest."""
    items = [say(0)] + [functools.partial(time.sleep, 0.5)] * 500
    results = encode_parallel(items, operator.call, workers=2)
    began = time.monotonic()
    next(results)
    results.close()
    assert time.monotonic() - began < 20
