"""Ninety conversions that are killed or interrupted at random moments.

Afterwards nothing may be under the final name but what was there before, no process and no shared memory may be left,
and the same command must end with the bytes of a conversion that nothing disturbed.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from bench.faults.runs import has_ended
from bench.faults.suite import Fault, each, finished
from bench.processes import Process, Server

LIMIT = 30  # seconds until a disturbed conversion has ended, and again until its restart has
ORPHANS = 10  # seconds after which none of its processes may be left
IMAGES = 240  # about a second's work
KINDS = {"SIGKILL": 25, "SIGKILL of a worker": 20, "Ctrl-C": 20, "five Ctrl-C": 10, "SIGTERM": 15}
OLDER = b"an older file\n" * 100


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    write_images(folder / "images")
    for place in ("first", "sound"):  # the first one compiles
        began = time.monotonic()
        if finished(server.start(command(folder, folder / place)), 10 * LIMIT).status != 0:
            raise RuntimeError("a conversion that nothing disturbs failed")
    seconds = time.monotonic() - began

    def disturb(kind: str, number: int) -> tuple[str, str]:
        target = folder / f"{kind} {number}".replace(" ", "_")
        target.mkdir()
        if number % 2:
            (target / "x_train.beton").write_bytes(OLDER)
        return _outcome(server, command(folder, target), kind, random.Random(f"{kind} {number}"), seconds)

    cases = [(kind, k) for kind, count in KINDS.items() for k in range(1 if quick else count)]
    return [Fault(f"{kind} {number}", *outcome) for (kind, number), outcome in each(cases, disturb)]


def write_images(folder: Path):
    """Noisy pictures of two classes, which take a while to encode."""
    chance, base = np.random.default_rng(0), np.add.outer(np.arange(375), np.arange(500))[..., None] // 4
    for number in range(IMAGES):
        path = folder / "train" / "ab"[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noisy = base + chance.integers(-30, 31, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def command(folder: Path, out: Path) -> list[str]:
    return ["write_datasets.py", f"--data.source={folder / 'images'}", f"--data.out={out / 'x'}", "--data.workers=2",
            "--image.max_side=400"]  # fmt: skip


def _outcome(server: Server, words: list[str], kind: str, chance: random.Random, seconds: float) -> tuple[str, str]:
    """Starts a conversion, disturbs it at a random moment, and starts it again."""
    target = Path(words[2].removeprefix("--data.out=")).parent
    older, sound = (target / "x_train.beton").exists(), target.parent / "sound"
    part, shared = chance.uniform(0.05, 0.95), set(os.listdir("/dev/shm"))
    while has_ended(process := server.start(words), part * seconds):
        part *= 0.7  # it was faster than the one that was timed
    _strike(process, kind, chance)
    ended_in_time = has_ended(process, LIMIT)
    left = _left_behind(process.pid, shared)
    ended = finished(process, LIMIT)
    if not ended_in_time or left:
        return "hang", left or "it went on"
    if "Traceback" in ended.text and ended.status > 0:
        return "crash", f"status {ended.status}: {ended.last_line}"
    if ended.status == 0:
        return ("harmless", "it was completed") if _same(target, sound) else ("silent", "status 0, other bytes")
    path = target / "x_train.beton"
    content = path.read_bytes() if path.exists() else None
    if content not in (OLDER if older else None, (sound / path.name).read_bytes()):  # it may fail when all is in place
        return ("lost", "the older file is gone") if older else ("silent", "a file has the final name")
    again = finished(server.start(words), LIMIT)
    if again.status != 0 or not _same(target, sound):
        return "lost", f"the restart: status {again.status}, {sorted(path.name for path in target.iterdir())}"
    return "detected", ended.last_line if ended.status > 0 else f"status {ended.status}"


def _same(target: Path, sound: Path) -> bool:
    """Whether all is there that a sound conversion leaves, with the same bytes, and nothing else."""
    found, wanted = ({path.name: path for path in folder.iterdir()} for folder in (target, sound))
    return found.keys() == wanted.keys() and all(
        found[name].read_bytes() == wanted[name].read_bytes() for name in found if not name.endswith(".json")
    )


def _strike(process: Process, kind: str, chance: random.Random):
    if kind.endswith("Ctrl-C"):
        for _ in range(5 if kind.startswith("five") else 1):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.02)
    elif kind == "SIGKILL of a worker":
        workers = []
        while not workers and process.poll() is None:
            workers = [one for one in _family(process.pid) if one.pid != process.pid and _works(one)]
        for one in chance.sample(workers, min(1, len(workers))):
            one.kill()
    else:
        process.send_signal(signal.SIGKILL if kind == "SIGKILL" else signal.SIGTERM)


def _works(process: psutil.Process) -> bool:
    """Whether it is one that encodes, and not one that starts or watches those."""
    with contextlib.suppress(psutil.Error):
        return not process.children() and not any("resource_tracker" in word for word in process.cmdline())
    return False


def _family(group: int) -> list[psutil.Process]:
    """The living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _left_behind(group: int, shared: set[str]) -> str:
    """Processes and shared memory that are still there after ORPHANS seconds, in words."""
    deadline = time.monotonic() + ORPHANS
    while True:
        family, new = _family(group), set(os.listdir("/dev/shm")) - shared
        if not family and not new:
            return ""
        if time.monotonic() > deadline:
            return f"{len(family)} processes and {len(new)} files in /dev/shm left after {ORPHANS} s"
        time.sleep(0.1)
