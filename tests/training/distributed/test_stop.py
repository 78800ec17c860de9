"""Signals: one process notes them, several agree on them at the same step. Whole runs: tests/test_train_imagenet.py."""

import os
import signal
from pathlib import Path

import pytest

from training.distributed import stop

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_kills_nothing(number):
    before = signal.getsignal(number)
    with stop.on_request() as asked:
        assert asked() is None
        os.kill(os.getpid(), number)
        assert asked() == asked() == number
    assert signal.getsignal(number) == before


def test_of_two_signals_the_one_that_requeues_counts():
    for first, second in ((signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)):
        with stop.on_request() as asked:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)
            assert asked() == signal.SIGUSR1


AGREEING = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import torch.distributed as dist
from training.distributed import stop
dist.init_process_group("gloo")
rank = dist.get_rank()
with stop.on_request() as asked:
    for step in range(1, 200):
        time.sleep(0.002 * rank)  # they need not be equally fast
        if rank == 1 and step == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        if rank == 0 and step == 50:
            time.sleep(0.2)
        if found := asked():
            break
print(step, int(found), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.timeout(200)
def test_ranks_hear_of_it_at_the_same_step(start_python, tmp_path):
    """One of three gets the signal at step 50; all hear of it one step later."""
    (tmp_path / "worker.py").write_text(AGREEING.format(root=str(ROOT)))
    ranks = start_python([tmp_path / "worker.py"], ranks=3)
    assert [rank.communicate(timeout=150)[0] for rank in ranks] == [f"51 {int(signal.SIGTERM)}\n"] * 3
