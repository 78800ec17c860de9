"""A small run for the groups that kill and rob one. The measure is always a run that nothing disturbed: its last
weights, bit for bit."""

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.faults.suite import finished
from bench.processes import Process, Server
from config.recipe import BASE_RECIPE
from training.saving import checkpoint

BEFORE, BETWEEN, UNDER = "before the start", "between two starts", "under the run"
LIMIT = 120  # seconds that one start of a run may take
# Three stages with everything in them that has a state or is drawn: repeated augmentation, mixing, stochastic depth,
# averaged weights, accumulation; four steps an epoch on the 64 images.
RECIPE = """base: base.yaml
model: {name: deit3_micro_patch16_224}
stage: {epochs: EPOCHS, batch: 16, mix_chunk: 8, warmup_epochs: 0, ema: 0.9, drop_path: 0.1, resolution: 32}
stages:
- {name: pretrain_32}
- {name: pretrain_48, resolution: 48, start: ema, crop: src, augment: rand, repeats: 1, loss: ce, smoothing: 0.1}
- {name: finetune_64, resolution: 64, augment: none, mixup: 0, cutmix: 0, optimizer: adamw, lr: 1.0e-4, ema: none}
speed: {device: cpu, micro_batch: 8}
data: {workers: 2}
log: {every: 1, tensorboard: false, save_every: 1.0e-6, eval_every: 3}
"""


def command(recipe: Path, data: Path, out: Path, name: str) -> list[str]:
    """The words of `python train_imagenet.py`, of a run that goes to out/name."""
    return ["train_imagenet.py", f"--cfg={recipe}", f"--data.train={data}", f"--data.val={data}", f"--log.out={out}",
            f"--log.name={name}"]  # fmt: skip


def steps(folder: Path) -> int:
    """The last step that the log of a run tells of."""
    log = folder / "log.jsonl"
    for line in reversed(log.read_bytes().splitlines()) if log.exists() else ():
        with contextlib.suppress(ValueError):  # a line that is half written
            row = json.loads(line)
            if row["kind"] == "step":
                return row["step"]
    return 0


def newest_checkpoint(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    found = checkpoint.saved(folder / "checkpoints")
    return int(found[-1].stem) if found else 0


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


def undisturbed(server: Server, folder: Path, data: Path, *, epochs: int) -> tuple[Path, Path]:
    """The recipe, and the folder of a run of it."""
    (folder / "base.yaml").write_bytes(BASE_RECIPE.read_bytes())
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("EPOCHS", str(epochs)))
    ended = finished(server.start(command(recipe, data, folder / "runs", "whole")), 5 * LIMIT)
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run failed: {ended.text[-500:]}")
    return recipe, folder / "runs" / "whole"


def copied(data: Path, recipe: Path, place: Path):
    """Copies the recipe, and the data as `place`/x.beton with what lies beside it."""
    for file in [*data.parent.glob(f"{data.stem}.*"), *recipe.parent.glob("*.yaml")]:
        shutil.copy(file, place / file.name.replace(data.stem, "x"))


def disturbed(server: Server, place: Path, when: str, disturb: Callable[[], None], *more: str) -> Process:
    """A run of what lies in `place`, with `more` words, into its runs/run; `disturb()` is called before its start, or
    five steps later: under the run, or between two starts. Returns the process that runs last."""
    words = [*command(place / "recipe.yaml", place / "x.beton", place / "runs", "run"), *more]
    if when == BEFORE:
        disturb()
    process = server.start(words)
    if when != BEFORE:
        wait_until(process, lambda: steps(place / "runs" / "run") >= 5)
    if when == BETWEEN:
        process.send_signal(signal.SIGTERM)
        finished(process, LIMIT)
        disturb()
        process = server.start(words)
    if when == UNDER:
        disturb()
    return process


def wait_until(process: Process, reached: Callable[[], bool]):
    """Until `reached()`, or the process has ended, or LIMIT has passed."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and not has_ended(process, 0.01) and not reached():
        pass


def has_ended(process: Process, seconds: float) -> bool:
    """Whether it ends within so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
