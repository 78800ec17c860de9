"""Runs that are stopped, killed and robbed of files. The measure is always a run that nothing disturbed: its last
weights, bit for bit."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.faults import betons, campaign
from bench.faults.campaign import OURS, ROOT, STOCK, Fault
from training import checkpoints

STOPS, KILLS_WRITING, KILLS_TRAINING = 50, 8, 40
CHAINS = 2  # runs side by side, each of which takes its part of the stops
LIMIT = 120  # seconds that one start of a run may take
RECIPE = """base: base.yaml
model: {name: deit3_micro_patch16_224}
stage: {epochs: EPOCHS, batch: 16, mix_chunk: 8, warmup_epochs: 1, ema: 0.9, drop_path: 0.1, resolution: 32}
stages:
- {name: pretrain_32}
- {name: pretrain_48, resolution: 48, start: ema, crop: src, augment: rand, repeats: 1, loss: ce, smoothing: 0.1}
- {name: finetune_64, resolution: 64, augment: none, mixup: 0, cutmix: 0, optimizer: adamw, lr: 1.0e-4, ema: none}
speed: {device: cpu, micro_batch: 8}
data: {workers: 2}
log: {every: 1, tensorboard: false, save_every: 1.0e-6, eval_every: 3}
"""


def write_recipe(folder: Path, *, epochs: int) -> Path:
    """Three stages with everything in them that has a state or is drawn: repeated augmentation, mixing, stochastic
    depth, averaged weights, accumulation; four steps an epoch on the 64 images."""
    from training import recipe

    (folder / "base.yaml").write_bytes(recipe.BASE.read_bytes())
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("EPOCHS", str(epochs)))
    return path


def words(recipe: Path, data: Path, out: Path, name: str, *more: str) -> list[str]:
    return [f"--cfg={recipe}", f"--data.train={data}", f"--data.val={data}", f"--log.out={out}", f"--log.name={name}",
            *more]  # fmt: skip


def train(*arguments: str):
    """The command line in this process."""
    import train_imagenet

    train_imagenet.report.write = lambda *given: ""  # a second for curves that no one looks at
    return train_imagenet.main(list(arguments))


def steps(folder: Path) -> int:
    """The last step that the log of a run tells of."""
    log = folder / "log.jsonl"
    for line in reversed(log.read_bytes().splitlines()) if log.exists() else ():
        with contextlib.suppress(ValueError):  # a line that is half written
            row = json.loads(line)
            if row["kind"] == "step":
                return row["step"]
    return 0


def same_weights(one: Path, other: Path) -> bool:
    """Whether two run folders end with the same bits, in each stage."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    if not names or names != sorted(path.name for path in other.glob("*.safetensors")):
        return False
    return all(same_bits(one, other, name) for name in names)


def same_bits(one: Path, other: Path, name: str) -> bool:
    """Whether the weights of this name in two folders are the same bits."""
    a, b = load_file(one / name), load_file(other / name)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def undisturbed(folder: Path, data: Path, *, epochs: int) -> tuple[Path, Path]:
    """The recipe, and the folder of a run of it."""
    recipe = write_recipe(folder, epochs=epochs)
    ended = campaign.forked(train, *words(recipe, data, folder / "runs", "whole"), limit=5 * LIMIT)
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run failed: {ended.text[-500:]}")
    return recipe, folder / "runs" / "whole"


# --- fifty stops -----------------------------------------------------------------------------------------------------


def run_stops(folder: Path, *, quick: bool) -> list[Fault]:
    """SIGTERM or SIGUSR1 at random steps over all stages."""
    data = betons.write(folder)
    stops, chains = (2, 1) if quick else (STOPS, CHAINS)
    epochs = 1 if quick else 12
    recipe, whole = undisturbed(folder, data, epochs=epochs)
    total, faults = steps(whole), []
    cases = [(recipe, data, whole, total, stops // chains, k) for k in range(chains)]
    for (*_, count, number), ended in campaign.each(cases, _stopped_often, limit=LIMIT * stops, at_once=chains):
        found = ended.value or [("crash", ended.text[-200:])] * count
        faults += [Fault(OURS, f"stop {number}.{k}", *end) for k, end in enumerate(found)]
    return faults


def _stopped_often(recipe, data, whole, total, count, number):
    chance, run = random.Random(number), whole.parent / f"stopped{number}"
    given, seen = words(recipe, data, whole.parent, run.name), []
    for at in sorted(chance.sample(range(1, max(count + 1, int(0.9 * total))), count)):
        target = max(at, steps(run) + 1)  # of this start: the log tells of the steps before it too
        child = campaign.Child(train, *given)
        _wait_for(child, lambda target=target: steps(run) >= target)
        child.signal(chance.choice([signal.SIGTERM, signal.SIGUSR1]))
        child.wait(LIMIT)
        ended = child.end()
        if ended.status != 0:
            seen.append(("hang" if ended.status is None else "crash", f"status {ended.status}: {ended.last_line}"))
        else:
            stopped = re.search(r"stopped at step \d+", ended.text)
            seen.append(("detected", stopped[0]) if stopped else ("harmless", "too late: it ended before the signal"))
    last = campaign.forked(train, *given, limit=5 * LIMIT)
    if last.status != 0:
        return [("crash", last.last_line)] * count
    if not same_weights(whole, run):
        return [("silent", "other weights in the end")] * count
    return seen


def _wait_for(child, reached: Callable[[], bool]):
    """Until `reached()`, or the child has ended, or LIMIT has passed."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and not child.wait(0.01) and not reached():
        pass


# --- from images to weights, killed all the way ----------------------------------------------------------------------


def run_kills(folder: Path, *, quick: bool) -> list[Fault]:
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
            _wait_for(child, lambda target=target: steps(run) >= target)
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


# --- evaluation on several ranks -------------------------------------------------------------------------------------


def run_evaluation(folder: Path, *, quick: bool) -> list[Fault]:
    """Each image is counted once, whatever the number of ranks, and top-1 is the same to the last digit."""
    from training import judge

    data = betons.write(folder)
    recipe, whole = undisturbed(folder, data, epochs=1)
    given = words(recipe, data, folder / "runs", "evaluated", "--eval-only", f"--init={whole}")
    faults, first = [], None
    for world in (1, 3) if quick else (1, 2, 3, 7):
        results = folder / "evaluated" / str(world)
        ends = _ranks(world, train, *given, f"--eval.out={results}")
        if any(ended.status != 0 for ended in ends):
            hangs = any(ended.status is None for ended in ends)
            text = "".join(ended.text for ended in ends)
            faults.append(Fault(OURS, f"{world} ranks", "hang" if hangs else "crash", text[-200:]))
            continue
        (found,) = judge.read(results)
        first = first or found
        right = found["images"] == betons.SAMPLES and (found["top1"], found["top5"]) == (first["top1"], first["top5"])
        outcome = "harmless" if right else "silent"
        faults.append(Fault(OURS, f"{world} ranks", outcome, f"{found['images']} images, {found['top1']}"))
    for world in () if quick else (1, 2, 3, 7):
        counts = [ended.value for ended in _ranks(world, _stock_share, data)]
        total = sum(count or 0 for count in counts)
        outcome = "harmless" if total == betons.SAMPLES else "silent"
        faults.append(Fault(STOCK, f"{world} ranks", outcome, f"{total} images of {betons.SAMPLES}"))
    return faults


def _ranks(world: int, function, *arguments):
    """How `function(*arguments)` ended in each of `world` processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [campaign.Child(_as_rank, rank, world, port, function, *arguments) for rank in range(world)]
    deadline = time.monotonic() + LIMIT
    for child in children:
        child.wait(deadline - time.monotonic())
    return [child.end() for child in children]


def _as_rank(rank: int, world: int, port: int, function, *arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    return function(*arguments)


def _stock_share(path: Path) -> int:
    """How many samples FFCV's distributed sequential order gives this rank."""
    from ffcv.loader import Loader, OrderOption

    torch.distributed.init_process_group("gloo")
    order = OrderOption.SEQUENTIAL
    loader = Loader(str(path), batch_size=16, num_workers=1, order=order, distributed=True, drop_last=False)
    return len(loader.next_traversal_order())


# --- files that go away ----------------------------------------------------------------------------------------------


def run_removals(folder: Path, *, quick: bool) -> list[Fault]:
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
        _wait_for(child, lambda: steps(run) >= 5)
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
