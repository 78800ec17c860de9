"""What is no file that ends, wherever a file is expected: nothing waits for it, and it is named."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from bench.faults import betons, odd_sources
from bench.faults.runs import LIMIT, command, same_weights, steps, undisturbed, wait_until
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server
from training.saving import checkpoint


def _holes(path: Path):
    path.touch()
    os.truncate(path, 2**40)


KINDS: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte of holes": _holes,
    "a link to nowhere": lambda path: path.symlink_to("gone"),
}
OF_A_RUN = ("x.beton", "x.json", "x.xxh64", "x.files.txt", "recipe.yaml", "base.yaml", "weights.safetensors")
OF_ITS_FOLDER = ("the newest checkpoint", "log.jsonl", "plan.json", "run.json", "recipe.yaml of the run")
KINDS_OF_RUNS = 2  # a run takes ten times as long as a conversion: each place meets two kinds, in turn


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    """Each kind as each file that a conversion reads; two of them as each file that a run reads, or goes on from."""
    data = betons.write(folder, server)
    recipe, whole = undisturbed(server, folder, data, epochs=1)
    sources = [(f"{kind} as {place}", place, kind) for place in odd_sources.FILES for kind in KINDS]
    places, kinds = OF_A_RUN + OF_ITS_FOLDER, itertools.cycle(KINDS)
    runs = [(f"{kind} as {place}", place, kind) for place in places for kind in itertools.islice(kinds, KINDS_OF_RUNS)]

    def replaced(name: str, place: str, kind: str) -> tuple[str, str]:
        target = folder / "cases" / name.replace(" ", "_")
        target.mkdir(parents=True)
        if place in odd_sources.FILES:
            return _converted(server, target, place, kind)
        for beside in [*data.parent.glob(f"{data.stem}.*"), *recipe.parent.glob("*.yaml")]:
            shutil.copy(beside, target / beside.name.replace(data.stem, "x"))
        return _trained(server, target, whole, place, kind)

    cases = sources[:: 12 if quick else 1] + runs[:: 12 if quick else 1]
    return [Fault(name, *outcome) for (name, *_), outcome in each(cases, replaced)]


def _put(path: Path, kind: str):
    path.unlink(missing_ok=True)
    KINDS[kind](path)


def _converted(server: Server, folder: Path, place: str, kind: str) -> tuple[str, str]:
    words, odd = odd_sources.FILES[place](folder)
    _put(odd, kind)
    ended = finished(server.start(["write_datasets.py", f"--data.out={folder / 'x'}", *words]), LIMIT)
    listed = folder / "x_train.files.txt"
    return judged(ended, right=lambda _: listed.exists() and odd.name not in listed.read_text())


def _trained(server: Server, folder: Path, whole: Path, place: str, kind: str) -> tuple[str, str]:
    run = folder / "runs" / "run"
    words = command(folder / "recipe.yaml", folder / "x.beton", run.parent, "run")
    if place in OF_A_RUN:
        words += [f"--init={folder / place}"] if place == "weights.safetensors" else []
        _put(folder / place, kind)
    else:
        process = server.start(words)
        wait_until(process, lambda: steps(run) >= 5)
        process.send_signal(signal.SIGTERM)
        finished(process, LIMIT)
        newest = checkpoint.saved(run / "checkpoints")[-1]
        _put(newest if place == "the newest checkpoint" else run / place.removesuffix(" of the run"), kind)
    return judged(finished(server.start(words), LIMIT), right=lambda _: same_weights(whole, run))
