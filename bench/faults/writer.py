"""A hundred conversions that are killed, interrupted or run out of space, and two at the same time on one target.

Afterwards nothing may be under the final name but what was there before, no process and no shared memory may be left,
and the same command must end with the bytes of a conversion that nothing disturbed.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from bench.faults import campaign
from bench.faults.campaign import OURS, ROOT, STOCK, Fault
from bench.faults.sources import picture

LIMIT = 30  # seconds until a disturbed conversion has ended, and again until its restart has
ORPHANS = 10  # seconds after which none of its processes may be left
IMAGES = 240  # about a second's work
KINDS = {"SIGKILL": 25, "SIGKILL of a worker": 20, "Ctrl-C": 20, "SIGTERM": 15, "disk full": 16, "two at once": 4}
OF_STOCK = 5  # of each kind but the last


def run(folder: Path, *, quick: bool) -> list[Fault]:
    write_images(folder / "images")
    for place in ("first", "sound"):  # the first one compiles
        began = time.monotonic()
        subprocess.run(command(folder, folder / place), cwd=ROOT, check=True, capture_output=True, timeout=10 * LIMIT)
    seconds = time.monotonic() - began
    faults = []
    for who, disturb, at_once in ((OURS, _ours, 2), (STOCK, _stock, 4))[: 1 if quick else 2]:
        counts = {kind: 1 if quick else count if who == OURS else OF_STOCK for kind, count in KINDS.items()}
        cases = [(folder, who, kind, k, seconds) for kind, count in counts.items() for k in range(count)
                 if who == OURS or kind != "two at once"]  # fmt: skip
        for case, ended in campaign.each(cases, disturb, limit=6 * LIMIT, at_once=at_once):
            outcome, note = ended.value or ("crash", ended.text[-300:])
            faults.append(Fault(who, f"{case[2]} {case[3]}", outcome, note))
    return faults


def write_images(folder: Path):
    """Noisy pictures of two classes, which take a while to encode."""
    chance, base = np.random.default_rng(0), picture(375, 500).astype(np.int16)
    for number in range(IMAGES):
        noise = chance.integers(-30, 31, base.shape, dtype=np.int16)
        path = folder / "train" / "ab"[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((base + noise).clip(0, 255).astype(np.uint8)).save(path, quality=92)


def command(folder: Path, out: Path) -> list[str]:
    return [sys.executable, "write_datasets.py", f"--data.source={folder / 'images'}", f"--data.out={out / 'x'}",
            "--data.workers=2", "--image.max_side=400"]  # fmt: skip


class Target:
    """A folder to write to, perhaps with an older file under the final name, perhaps on a small disk of its own."""

    def __init__(self, folder: Path, sound: Path, *, older: bool, bytes_free: int | None):
        self.folder, self.sound, self.path = folder, sound, folder / "x_train.beton"
        self.mounted, self.before = False, None
        folder.mkdir(parents=True)
        if bytes_free is not None:
            self._mount(f"size={bytes_free}")
            self.mounted = True
        if older:
            self.before = b"an older file\n" * 100
            self.path.write_bytes(self.before)

    def _mount(self, options: str):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True, capture_output=True)

    def make_room(self):
        if self.mounted:
            self._mount("remount,size=1g")

    def close(self):
        if self.mounted:
            subprocess.run(["umount", "-l", self.folder], check=True, capture_output=True)
        shutil.rmtree(self.folder)

    def wrong(self) -> tuple[str, str] | None:
        """What is wrong under the final name after a conversion that says that it failed. It may have failed after all
        was in place."""
        if self.path.exists() and self.path.read_bytes() == (self.sound / self.path.name).read_bytes():
            return None
        if self.before is not None:
            kept = self.path.exists() and self.path.read_bytes() == self.before
            return None if kept else ("lost", "the older file is gone")
        return ("silent", "a file has the final name") if self.path.exists() else None

    def complete(self) -> bool:
        """Whether all is there that a sound conversion leaves, with the same bytes, and nothing else."""
        names = {path.name for path in self.sound.iterdir()}
        same = (path.read_bytes() == (self.sound / path.name).read_bytes() for path in self.folder.iterdir()
                if path.suffix != ".json")  # fmt: skip
        return names == {path.name for path in self.folder.iterdir()} and all(same)


def may_mount() -> bool:
    return os.geteuid() == 0


def _target(folder: Path, who: str, kind: str, number: int) -> Target:
    taken = (folder / "sound" / "x_train.beton").stat().st_blocks * 512  # without the zeros that no disk stores
    share = random.Random(number).uniform(0.05, 0.9)
    full = kind == "disk full" and may_mount()
    place = folder / who / f"{kind} {number}".replace(" ", "_")
    return Target(place, folder / "sound", older=number % 2 == 1, bytes_free=int(share * taken) if full else None)


def _ours(folder: Path, who: str, kind: str, number: int, seconds: float):
    target = _target(folder, who, kind, number)
    limited = ["prlimit", f"--fsize={int(target.sound.joinpath('x_train.beton').stat().st_size * 0.5)}"]
    words = command(folder, target.folder)
    try:
        if kind == "two at once":
            return _two_at_once(words, target, random.Random(number).uniform(0, 0.6) * seconds)
        disturbed = limited + words if kind == "disk full" and not target.mounted else words

        with tempfile.TemporaryFile("w+") as errors:
            status, left = _disturbed(disturbed, errors, kind, number, seconds)
            errors.seek(0)
            said = errors.read().strip()
        if status is None or left:
            return "hang", left or "it went on"
        if "Traceback" in said and status > 0:
            return "crash", f"status {status}: {said.splitlines()[-1]}"
        if status == 0:
            return ("harmless", "it was completed") if target.complete() else ("silent", "status 0, other bytes")
        if fault := target.wrong():
            return fault
        target.make_room()
        again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        if again.returncode or not target.complete():
            return "lost", f"the restart: status {again.returncode}, {sorted(p.name for p in target.folder.iterdir())}"
        return "detected", said.splitlines()[-1] if status > 0 and said else f"status {status}"
    finally:
        target.close()


def _disturbed(words: list[str], errors, kind: str, number: int, seconds: float):
    """Starts a conversion and disturbs it at a random moment. Returns its exit status, None if it did not end, and what
    it left behind."""
    shared = set(os.listdir("/dev/shm"))
    part = random.Random(f"{kind} {number}").uniform(0.05, 0.95)
    while True:
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        if kind != "disk full":
            time.sleep(part * seconds)
            if process.poll() is not None:  # it was faster than the one that was timed
                part *= 0.7
                continue
            _strike(process.pid, kind, random.Random(number))
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = None
        left = _left_behind(process.pid, shared)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return status, left


def _strike(pid: int, kind: str, chance: random.Random):
    if kind == "Ctrl-C":
        os.killpg(pid, signal.SIGINT)
    elif kind == "SIGKILL of a worker":
        workers = []
        while not workers and psutil.pid_exists(pid):
            workers = [one for one in _family(pid) if one.pid != pid and _works(one)]
        for one in chance.sample(workers, min(1, len(workers))):
            one.kill()
    else:
        os.kill(pid, signal.SIGKILL if kind == "SIGKILL" else signal.SIGTERM)


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


def _two_at_once(words, target: Target, delay: float):
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    second = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = [process.communicate(timeout=LIMIT)[1] for process in (first, second)]
    ends = sorted(process.returncode for process in (first, second))
    if not target.complete():
        return "silent", f"both on one target: status {ends}"
    if ends == [0, 2]:
        return "detected", max(errors, key=len).strip().splitlines()[-1]
    return ("harmless", "one after the other") if ends == [0, 0] else ("crash", f"status {ends}")


# --- stock FFCV ----------------------------------------------------------------------------------------------------


def _stock(folder: Path, who: str, kind: str, number: int, seconds: float):
    target = _target(folder, who, kind, number)
    shared = set(os.listdir("/dev/shm"))
    try:
        child = campaign.Child(_stock_writer, folder / "images" / "train", target.path)
        if kind != "disk full":
            child.wait(1.0 + random.Random(number).uniform(0, 1.0))
            _strike(child.pid, kind, random.Random(number))
        finished = child.wait(LIMIT)
        left = _left_behind(child.pid, shared)
        child.end()
        opens = campaign.forked(_opens, target.path, limit=LIMIT).value
        if not finished:
            return "hang", f"it went on; {left}"
        if opens:
            return "silent", f"the file opens; {left}"
        if target.before is not None:
            return "lost", f"the older file is gone; {left}"
        return ("hang", left) if left else ("detected", "")
    finally:
        target.close()


def _stock_writer(images: Path, path: Path):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    warnings.simplefilter("ignore")
    fields = {"image": RGBImageField(write_mode="jpg", max_resolution=400), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(ImageFolder(str(images)))


def _opens(path: Path) -> bool:
    from ffcv.reader import Reader

    return Reader(str(path)).num_samples == IMAGES
