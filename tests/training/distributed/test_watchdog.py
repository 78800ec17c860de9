"""The verdict on what ranks say of themselves, and real ranks that are killed, stopped and held up."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from training import distributed
from training.distributed.watchdog import DONE, Beat, Seen, Watchdog, verdict

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


def seen(rank, place="past loading, batch 7", *, silent=0.0, still=0.0, gone=False, waits=False, moves=9, left=""):
    beat = Beat(rank, "node pid:[1]", 100 + rank, 5, moves, place, "12:00:00", waits, left)
    return Seen(beat, silent, still, gone)


CASES = {
    "all well": ([seen(0), seen(1, waits=True)], False, None),
    "slow but moving": ([seen(0, still=59), seen(1, still=59, silent=59)], False, None),
    "ended in order": ([seen(0), seen(1, gone=True, silent=500, still=500, left=DONE)], False, None),
    "killed": ([seen(0), seen(1, gone=True)], False, r"rank 1 \(node, process 101\) is gone"),
    "silent": ([seen(0, still=99), seen(1, silent=61, still=61)], False, "rank 1 .* no sign of life for 1 min 1 s"),
    "silent after a failure": ([seen(0), seen(1, silent=11)], True, r"rank 1 .* gives no sign of life for 11 s"),
    "failing by itself": ([seen(0), seen(1, gone=True, silent=4, left="UserError: x")], False, None),
    "failed": ([seen(0), seen(1, gone=True, silent=11, left="UserError: x")], False, "rank 1 .* ended: UserError: x"),
    "stalled loader": ([seen(0, still=61), seen(1, "waiting for its loader, batch 8", still=59, waits=True),
                        seen(2, still=55)], False, "rank 1 .* is waiting for its loader, batch 8 since .*, for 59"),
    "all loaders": ([seen(0, waits=True, still=70), seen(1, waits=True, still=150)], False, "rank 1 .* for 2 min 30 s"),
    "stuck": ([seen(0, still=70), seen(1, still=70, moves=8), seen(2, still=70)], False, "rank 1 .* is past"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_verdict(name):
    ranks, failed, expected = CASES[name]
    said = verdict(ranks, 60.0, failed=failed)
    if expected is None:
        assert said is None
    else:
        assert re.match(expected, said), said


def test_switched_off_it_does_nothing():
    loader = object()
    with Watchdog(None, distributed.Ranks(0, 1, CPU)) as watch:
        assert watch.watched(loader, "") is loader


class Loader:
    corrupt_samples = "corrupt"

    def __len__(self):
        return 3

    def epoch(self, number, start=0):
        yield from range(10 * number + start, 10 * number + 3)


def test_a_watched_loader_gives_the_same_and_says_where_it_is():
    watch = Watchdog(1.0, distributed.Ranks(0, 1, CPU))
    watched, places = watch.watched(Loader(), "stage x"), []
    assert (len(watched), watched.corrupt_samples) == (3, "corrupt")
    for batch in watched.epoch(4, 1):
        places.append((batch, watch.place[1], watch.place[3]))
    assert places == [(41, "past loading, stage x, epoch 5, batch 2", False),
                      (42, "past loading, stage x, epoch 5, batch 3", False)]  # fmt: skip
    next(iter(watched.epoch(4)))
    assert watch.place[0] == 8


# A process that is suspended for longer than `watchdog` allows, and then goes on.
SUSPENDED = """
import sys, time
sys.path.insert(0, {root!r})
import torch
from training import distributed
from training.distributed import watchdog
from training.distributed.watchdog import Watchdog

watchdog.TICK = 0.5
with Watchdog(4 / 60, distributed.Ranks(0, 1, torch.device("cpu"))) as watch:
    print("moving", flush=True)
    sys.stdin.readline()
    watch.at("there")
    time.sleep(1)
"""


@pytest.mark.timeout(100)
def test_time_in_which_the_process_was_suspended_does_not_count(start_python, tmp_path):
    (tmp_path / "worker.py").write_text(SUSPENDED.format(root=str(ROOT)))
    (process,) = start_python([tmp_path / "worker.py"])
    assert process.stdout.readline() == "moving\n"
    time.sleep(0.8)  # the first look at it
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.7)  # the next one
    _, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, errors) == (0, "")


# A run without a model: batches, and a collective after each. Rank STALLED never gets its fourth batch.
WORKER = """
import sys, time
sys.path.insert(0, {root!r})
import torch
from training import distributed
from training.distributed import watchdog
from training.distributed.watchdog import Watchdog

watchdog.TICK = 1.0
ranks, stalled = distributed.init_process_group("cpu"), {stalled}


class Loader:
    decoder = corrupt_samples = None

    def epoch(self, number, start=0):
        for batch in range(10**9):
            while ranks.rank == stalled and batch == 3:
                time.sleep(1)
            time.sleep(0.01)
            yield batch


with Watchdog({minutes}, ranks) as watch:
    for batch in watch.watched(Loader(), "stage x").epoch(0):
        distributed.all_reduce_sum(torch.ones(1))
        if batch == 2:
            print("moving", flush=True)
"""


def plain(tmp_path, *, stalled=-1, minutes=0.05):
    (tmp_path / "worker.py").write_text(WORKER.format(root=str(ROOT), stalled=stalled, minutes=minutes))
    return [tmp_path / "worker.py"]


def last_line(process):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    return errors.splitlines()[-1]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("world, victim", [(3, 1), (2, 0)])
def test_a_killed_rank_is_named_and_the_others_end(world, victim, start_python, tmp_path):
    processes = start_python(plain(tmp_path, minutes=5), ranks=world)
    for process in processes:
        assert process.stdout.readline() == "moving\n"
    processes[victim].send_signal(signal.SIGKILL)
    processes[victim].wait()
    for rank in set(range(world)) - {victim}:
        line = last_line(processes[rank])
        assert line.startswith(f"error: rank {rank} ends: rank {victim} (")
        assert f"process {processes[victim].pid}) " in line
        assert "is gone" in line


@pytest.mark.timeout(200)
def test_a_rank_that_stands_still_is_named_and_all_end(start_python, tmp_path):
    processes = start_python(plain(tmp_path), ranks=2)
    for process in processes:
        assert process.stdout.readline() == "moving\n"
    processes[1].send_signal(signal.SIGSTOP)
    line = last_line(processes[0])
    assert "error: rank 0 ends: rank 1 (" in line
    assert "gives no sign of life for" in line
    processes[1].send_signal(signal.SIGCONT)
    last_line(processes[1])


@pytest.mark.timeout(200)
def test_a_stalled_loader_is_named_and_all_end(start_python, tmp_path):
    for rank, process in enumerate(start_python(plain(tmp_path, stalled=1, minutes=0.1), ranks=2)):
        line = last_line(process)
        assert line.startswith(f"error: rank {rank} ends: rank 1 (")
        assert "is waiting for its loader, stage x, epoch 1, batch 4 since " in line


@pytest.mark.timeout(300)
def test_a_run_has_a_watchdog(start_python, tmp_path, jpg_beton):
    """The command line itself, one rank of two killed in training."""
    processes = start_python([
        ROOT / "train_imagenet.py", "--cfg", ROOT / "recipes/smoke.yaml", "--stage.resolution=32", "--stage.batch=16",
        "--stage.mix_chunk=8", "--stage.epochs=500", "--log.every=1", "--data.workers=1", f"--log.out={tmp_path}",
        f"--data.train={jpg_beton}", f"--data.val={jpg_beton}", "--log.name=run",
    ], ranks=2)  # fmt: skip
    log, deadline = tmp_path / "run" / "log.jsonl", time.time() + 120
    while not log.exists() or '"kind": "step"' not in log.read_text():
        assert time.time() < deadline
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait()
    assert f"rank 1 ({socket.gethostname()}, process {processes[1].pid}) is gone" in last_line(processes[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_single_process_is_watched_too(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set() or sys.exit(status))
    with Watchdog(0.01, distributed.Ranks(0, 1, CPU)) as watch:
        for _ in range(12):  # longer than the limit, but moving
            watch.at("moving")
            time.sleep(0.1)
        assert not ended.is_set()
        watch.at("waiting for its loader, batch 3", waits=True)
        assert ended.wait(10)
    said = capsys.readouterr().err
    assert said.startswith("error: rank 0 ends: rank 0 (")
    assert "is waiting for its loader, batch 3 since" in said
    assert said.count("\n") == 1


def test_beats_are_plain_values():
    beat = seen(1).beat
    assert Beat(*json.loads(json.dumps(beat))) == beat
