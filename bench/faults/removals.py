"""Files that go away before, between and under runs, and a disk that fills up."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from bench.faults import betons, campaign
from bench.faults.campaign import OURS, Fault
from bench.faults.runs import LIMIT, same_bits, same_weights, steps, train, undisturbed, wait_for, words
from training import checkpoints


def run(folder: Path, *, quick: bool) -> list[Fault]:
    """A file is removed before the start, between two starts, or under a run; and the disk fills up under it."""
    data = betons.write(folder)
    recipe, whole = undisturbed(folder, data, epochs=1)
    cases = [(folder / "cases" / str(number), recipe, data, whole, *case)
             for number, case in enumerate(REMOVALS[:: 6 if quick else 1])]  # fmt: skip
    faults = []
    for (*_, when, what), ended in campaign.each(cases, _robbed, limit=3 * LIMIT, at_once=2):
        faults.append(Fault(OURS, f"{what}, {when}", *(ended.value or ("crash", ended.text[-200:]))))
    return faults


BEFORE, BETWEEN, UNDER = "before the start", "between two starts", "under the run"
REMOVALS = (
    (BEFORE, "x.beton"), (BEFORE, "x.json"), (BEFORE, "x.xxh64"), (BEFORE, "x.files.txt"), (BEFORE, "the recipe"),
    (BETWEEN, "x.beton"), (BETWEEN, "the newest checkpoint"), (BETWEEN, "all checkpoints"), (BETWEEN, "log.jsonl"),
    (BETWEEN, "recipe.yaml"), (BETWEEN, "environment.json"), (BETWEEN, "half of log.jsonl"),
    (UNDER, "x.beton"), (UNDER, "x.json"), (UNDER, "x.xxh64"), (UNDER, "the newest checkpoint"),
    (UNDER, "all checkpoints"), (UNDER, "log.jsonl"), (UNDER, "recipe.yaml"), (UNDER, "the run folder"),
    (UNDER, "room on the disk"),
)  # fmt: skip


def _robbed(folder: Path, recipe: Path, data: Path, whole: Path, when: str, what: str):
    runs = folder / "runs"
    runs.mkdir(parents=True)
    for beside in data.parent.glob(f"{data.stem}.*"):
        shutil.copy(beside, folder / beside.name.replace(data.stem, "x"))
    for beside in recipe.parent.glob("*.yaml"):
        shutil.copy(beside, folder)
    mounted = what == "room on the disk"
    if mounted and os.geteuid() != 0:
        return "harmless", "not tried: only root may mount"
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", runs], check=True, capture_output=True)
    try:
        return _outcome(folder, runs, whole, when, what)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", runs], check=True, capture_output=True)


def _outcome(folder: Path, runs: Path, whole: Path, when: str, what: str):
    given, run = words(folder / "recipe.yaml", folder / "x.beton", runs, "run"), runs / "run"
    if when == BEFORE:
        _remove(folder, run, what)
    child = campaign.Child(train, *given)
    if when != BEFORE:
        wait_for(child, lambda: steps(run) >= 5)
        if when == BETWEEN:
            child.signal(signal.SIGTERM)
            child.wait(LIMIT)
            child.end()
            _remove(folder, run, what)
            child = campaign.Child(train, *given)
        else:
            _remove(folder, run, what)
    child.wait(LIMIT)
    ended = child.end()
    if what == "room on the disk":
        (runs / "filler").unlink()
        saved = checkpoints.saved(run / "checkpoints")
        if ended.status != 2 or not saved:
            return ("lost" if not saved else "crash"), f"status {ended.status}: {ended.last_line}"
        ended = campaign.forked(train, *given, limit=LIMIT)
    if what == "the run folder":  # it is made anew; the first stage's weights went away with the old one
        return campaign.judged(ended, right=lambda value: same_bits(whole, run, "model.safetensors"))
    return campaign.judged(ended, right=lambda value: same_weights(whole, run))


def _remove(folder: Path, run: Path, what: str):
    if what == "the newest checkpoint":
        checkpoints.saved(run / "checkpoints")[-1].unlink()
    elif what == "all checkpoints":
        shutil.rmtree(run / "checkpoints")
    elif what == "the run folder":
        run.rename(folder / "elsewhere")
    elif what == "half of log.jsonl":
        os.truncate(run / "log.jsonl", (run / "log.jsonl").stat().st_size // 2)
    elif what == "room on the disk":
        with contextlib.suppress(OSError), open(run.parent / "filler", "wb", buffering=0) as filler:
            while filler.write(bytes(2**14)):
                pass
    elif what == "the recipe":
        (folder / "recipe.yaml").unlink()
    else:
        (folder if what.startswith("x.") else run).joinpath(what).unlink(missing_ok=True)
