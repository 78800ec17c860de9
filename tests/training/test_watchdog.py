"""The verdict on what ranks say of themselves, and real ranks that are killed, stopped and held up."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from training import distributed
from training.watchdog import DONE, Beat, Seen, Watchdog, verdict

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def seen(rank, place="past loading, batch 7", *, silent=0.0, still=0.0, gone=False, waits=False, moves=9, left=""):
    beat = Beat(rank, "node pid:[1]", 100 + rank, 5, moves, place, "12:00:00", waits, left)
    return Seen(beat, silent, still, gone)


CASES = {
    "all well": ([seen(0), seen(1, waits=True)], False, None),
    "slow but moving": ([seen(0, still=59), seen(1, still=59, silent=59)], False, None),
    "ended in order": ([seen(0), seen(1, gone=True, silent=500, still=500, left=DONE)], False, None),
    "killed": ([seen(0), seen(1, gone=True)], False, r"rank 1 \(node, process 101\) is gone"),
    "silent": ([seen(0, still=99), seen(1, silent=61, still=61)], False, r"rank 1 .* gives no sign of life for 61 sec"),
    "silent after a failure": ([seen(0), seen(1, silent=11)], True, r"rank 1 .* gives no sign of life for 11 seconds"),
    "failing by itself": ([seen(0), seen(1, gone=True, silent=4, left="BadInput: x")], False, None),
    "failed": ([seen(0), seen(1, gone=True, silent=11, left="BadInput: x")], False, "rank 1 .* ended: BadInput: x"),
    "stalled loader": ([seen(0, still=61), seen(1, "waiting for its loader, batch 8", still=59, waits=True),
                        seen(2, still=55)], False, "rank 1 .* is waiting for its loader, batch 8 since .*, for 59"),
    "all loaders": ([seen(0, waits=True, still=70), seen(1, waits=True, still=150)], False, "rank 1 .* for 2 minutes"),
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
    with Watchdog(None, distributed.Ranks(0, 0, 1, CPU)) as watch:
        assert watch.watched(loader, "") is loader


class Loader:
    decoder = "decoder"

    def __len__(self):
        return 3

    def epoch(self, number, first=0):
        yield from range(10 * number + first, 10 * number + 3)


def test_a_watched_loader_gives_the_same_and_says_where_it_is():
    watch = Watchdog(1.0, distributed.Ranks(0, 0, 1, CPU))
    watched, places = watch.watched(Loader(), "stage x"), []
    assert (len(watched), watched.decoder) == (3, "decoder")
    for batch in watched.epoch(4, 1):
        places.append((batch, watch.place[1], watch.place[3]))
    assert places == [(41, "past loading, stage x, epoch 5, batch 2", False),
                      (42, "past loading, stage x, epoch 5, batch 3", False)]  # fmt: skip
    next(iter(watched.epoch(4)))
    assert watch.place[0] == 8


# Trains a recipe as the command line does; rank STALLED's loader never gives its fourth batch.
WORKER = """
import sys, time
sys.path.insert(0, {root!r})
import train_imagenet
real, stalled = train_imagenet.train_loader, {stalled}

def train_loader(*given, rank, **named):
    loader = real(*given, rank=rank, **named)
    epoch = loader.epoch

    def stalling(*given):
        for number, batch in enumerate(epoch(*given)):
            while rank == stalled and number == 3:
                time.sleep(1)
            yield batch

    loader.epoch = stalling
    return loader

train_imagenet.train_loader = train_loader
train_imagenet.main(sys.argv[1:])
"""


@pytest.fixture
def start(tmp_path, jpg_beton):
    """start(world, stalled, minutes): the processes of a run, without torchrun, which would end them itself."""
    started = []

    def start(world, *, stalled=-1, minutes=0.05):
        (tmp_path / "worker.py").write_text(WORKER.format(root=str(ROOT), stalled=stalled))
        keys = ["--cfg", ROOT / "recipes/smoke.yaml", "--stage.resolution=32", "--stage.batch=12",
                "--stage.mix_chunk=4", "--stage.epochs=500", "--log.every=1", "--data.workers=1",
                f"--data.train={jpg_beton}", f"--data.val={jpg_beton}", f"--log.out={tmp_path}", "--log.name=run",
                f"--watchdog={minutes}"]  # fmt: skip
        port = 20000 + (os.getpid() + len(started) + world) % 20000
        for rank in range(world):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}  # fmt: skip
            started.append(subprocess.Popen(
                [sys.executable, tmp_path / "worker.py", *map(str, keys)], text=True, cwd=ROOT,
                env=os.environ | {key: str(value) for key, value in place.items()},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            ))  # fmt: skip
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_steps(folder, processes, steps=2):
    log, deadline = folder / "run" / "log.jsonl", time.time() + 120
    while not log.exists() or log.read_text().count('"kind": "step"') < steps:
        assert time.time() < deadline
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world, victim", [(3, 1), (2, 0)])
def test_a_killed_rank_is_named_and_the_others_end(world, victim, start, tmp_path):
    processes = start(world, minutes=5)
    wait_for_steps(tmp_path, processes)
    processes[victim].send_signal(signal.SIGKILL)
    processes[victim].wait()
    for rank in set(range(world)) - {victim}:
        _, errors = processes[rank].communicate(timeout=60)
        assert processes[rank].returncode == 1
        line = errors.splitlines()[-1]
        assert line.startswith(f"error: rank {rank} ends: rank {victim} (")
        assert f"process {processes[victim].pid}) " in line
        assert "is gone" in line


@pytest.mark.timeout(300)
def test_a_rank_that_stands_still_is_named_and_all_end(start, tmp_path):
    processes = start(2)
    wait_for_steps(tmp_path, processes)
    processes[1].send_signal(signal.SIGSTOP)
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 1
    assert "error: rank 0 ends: rank 1 (" in errors.splitlines()[-1]
    assert "gives no sign of life for" in errors.splitlines()[-1]
    processes[1].send_signal(signal.SIGCONT)
    _, errors = processes[1].communicate(timeout=60)
    assert processes[1].returncode == 1


@pytest.mark.timeout(300)
def test_a_stalled_loader_is_named_and_all_end(start):
    processes = start(2, stalled=1, minutes=0.1)
    for rank, process in enumerate(processes):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        line = errors.splitlines()[-1]
        assert line.startswith(f"error: rank {rank} ends: rank 1 (")
        assert "is waiting for its loader, stage first_32, epoch 1, batch 4 since " in line


def test_a_single_process_is_watched_too(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set() or sys.exit(status))
    with Watchdog(0.01, distributed.Ranks(0, 0, 1, CPU)) as watch:
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
