"""From images to weights, killed all the way."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.faults import betons, campaign
from bench.faults.campaign import OURS, ROOT, Fault
from bench.faults.runs import LIMIT, same_weights, steps, train, undisturbed, wait_for, words
from training import checkpoints

KILLS_WRITING, KILLS_TRAINING = 8, 40


def run(folder: Path, *, quick: bool) -> list[Fault]:
    """SIGKILL at random moments while the data set is written, and then while the run starts, trains, evaluates and
    saves; a checkpoint is due at every step."""
    data = betons.write(folder)
    recipe, whole = undisturbed(folder, data, epochs=1 if quick else 12)
    writing, training = (1, 2) if quick else (KILLS_WRITING, KILLS_TRAINING)
    faults, chance = [], random.Random(0)
    command = [sys.executable, "write_datasets.py", f"--data.source={folder / 'images'}",
               f"--data.out={folder / 'killed'}"]  # fmt: skip
    killed = folder / "killed_train.beton"
    began = time.monotonic()
    subprocess.run([*command[:-1], f"--data.out={folder / 'measured'}"], cwd=ROOT, check=True, capture_output=True,
                   timeout=LIMIT)  # fmt: skip
    seconds = time.monotonic() - began
    for number in range(writing):
        part = chance.uniform(0.3, 0.95)
        while not _killed_after(part * seconds, command):
            part *= 0.7  # it was faster than the one that was timed
            for file in folder.glob("killed_train.*"):
                file.unlink()
        outcome = "detected"
        if killed.exists():
            outcome = "harmless" if killed.read_bytes() == data.read_bytes() else "silent"
        faults.append(Fault(OURS, f"while writing {number}", outcome, f"after {part:.0%} of the time"))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT)
    if killed.read_bytes() != data.read_bytes():
        faults.append(Fault(OURS, "the file that was written in the end", "lost", "other bytes"))
    given, run, seen, total = words(recipe, killed, whole.parent, "killed"), whole.parent / "killed", [], steps(whole)
    while len(seen) < training:
        begun = _newest(run)
        target = begun + (total - begun) / (training - len(seen) + 1)
        child = campaign.Child(train, *given)
        if chance.random() < 0.2:
            child.wait(chance.uniform(0.1, 1.0))  # often while it starts
        else:
            wait_for(child, lambda target=target: steps(run) >= target)
            child.wait(chance.uniform(0, 0.1))
        child.signal(signal.SIGKILL)
        child.wait(LIMIT)
        ended = child.end()
        if ended.status != -signal.SIGKILL:
            seen.append(("crash", f"status {ended.status}: {ended.last_line}"))
            break
        redone = steps(run) - _newest(run)
        seen.append(("detected" if redone <= 1 else "lost", f"{redone} steps to be done again"))
    last = campaign.forked(train, *given, limit=5 * LIMIT)
    if last.status != 0 or not same_weights(whole, run):
        seen = [("lost", f"the run in the end: status {last.status}, {last.last_line}")] * len(seen)
    return faults + [Fault(OURS, f"while training {k}", *end) for k, end in enumerate(seen)]


def _killed_after(seconds: float, command: list[str]) -> bool:
    """Starts a process and kills it; False where it had ended by then."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.kill()
    return process.wait(LIMIT) == -signal.SIGKILL


def _newest(run: Path) -> int:
    """The step of the newest checkpoint."""
    names = checkpoints.saved(run / "checkpoints")
    return int(names[-1].stem) if names else 0
