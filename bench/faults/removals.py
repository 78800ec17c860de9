"""Files that go away before, between and under runs, and a disk that fills up."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from bench.faults import betons
from bench.faults.runs import (
    BEFORE,
    BETWEEN,
    LIMIT,
    UNDER,
    command,
    copied,
    disturbed,
    same_bits,
    same_weights,
    undisturbed,
)
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server
from training.saving import checkpoint

DISK = "room on the disk"
REMOVALS = (
    (BEFORE, "x.beton"), (BEFORE, "x.json"), (BEFORE, "x.xxh64"), (BEFORE, "x.files.txt"), (BEFORE, "the recipe"),
    (BETWEEN, "x.beton"), (BETWEEN, "the newest checkpoint"), (BETWEEN, "all checkpoints"), (BETWEEN, "log.jsonl"),
    (BETWEEN, "recipe.yaml"), (BETWEEN, "environment.json"), (BETWEEN, "half of log.jsonl"),
    (UNDER, "x.beton"), (UNDER, "x.json"), (UNDER, "x.xxh64"), (UNDER, "the newest checkpoint"),
    (UNDER, "all checkpoints"), (UNDER, "log.jsonl"), (UNDER, "recipe.yaml"), (UNDER, "the run folder"),
    (UNDER, DISK),
)  # fmt: skip


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    """A file is removed before the start, between two starts, or under a run; and the disk fills up under it."""
    data = betons.write(folder, server)
    recipe, whole = undisturbed(server, folder, data, epochs=1)

    def robbed(place: Path, when: str, what: str) -> tuple[str, str]:
        runs = place / "runs"
        runs.mkdir(parents=True)
        copied(data, recipe, place)
        if what != DISK:
            return _outcome(server, place, whole, when, what)
        if os.geteuid() != 0:
            return "harmless", "not tried: only root may mount"
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", runs], check=True, capture_output=True)
        try:
            return _outcome(server, place, whole, when, what)
        finally:
            subprocess.run(["umount", "-l", runs], check=True, capture_output=True)

    cases = [(folder / "cases" / str(number), *case) for number, case in enumerate(REMOVALS[:: 6 if quick else 1])]
    return [Fault(f"{what}, {when}", *outcome) for (_, when, what), outcome in each(cases, robbed)]


def _outcome(server: Server, folder: Path, whole: Path, when: str, what: str) -> tuple[str, str]:
    runs, run = folder / "runs", folder / "runs" / "run"
    process = disturbed(server, folder, when, lambda: _remove(folder, run, what))
    ended = finished(process, LIMIT)
    if what == DISK:
        (runs / "filler").unlink()
        saved = checkpoint.saved(run / "checkpoints")
        if ended.status != 2 or not saved:
            return ("lost" if not saved else "crash"), f"status {ended.status}: {ended.last_line}"
        words = command(folder / "recipe.yaml", folder / "x.beton", runs, "run")
        ended = finished(server.start(words), LIMIT)
    if what == "the run folder":  # it is made anew; the first stage's weights went away with the old one
        return judged(ended, right=lambda _: same_bits(whole, run, "model.safetensors"))
    return judged(ended, right=lambda _: same_weights(whole, run))


def _remove(folder: Path, run: Path, what: str):
    if what == "the newest checkpoint":
        checkpoint.saved(run / "checkpoints")[-1].unlink()
    elif what == "all checkpoints":
        shutil.rmtree(run / "checkpoints")
    elif what == "the run folder":
        run.rename(folder / "elsewhere")
    elif what == "half of log.jsonl":
        os.truncate(run / "log.jsonl", (run / "log.jsonl").stat().st_size // 2)
    elif what == DISK:
        with contextlib.suppress(OSError), open(run.parent / "filler", "wb", buffering=0) as filler:
            while filler.write(bytes(2**14)):
                pass
    elif what == "the recipe":
        (folder / "recipe.yaml").unlink()
    else:
        (folder if what.startswith("x.") else run).joinpath(what).unlink(missing_ok=True)
