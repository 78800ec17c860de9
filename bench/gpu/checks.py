"""What must be right on a GPU before its numbers count. Each check returns rows; `most`: the largest right value.

A CPU may stand in for the GPU everywhere: then the checks only show that they run.
"""

import math
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.report import row
from bench.step.baselines import QUICK, ROOT, TASKS, begun, forward_backward, run_of, update
from bench.step.measure import CPU, Clock, Matmul
from config.recipe import load_recipe
from ffcv_ops.storage.index import describe
from training.loading import Placement, train_loader
from training.memory.micro_batch import random_batch
from training.repeatable import make_deterministic
from training.run import Run, precision
from training.saving.run_folder import RunFolder
from training.stage import Stage, create_stage

TINY = QUICK._replace(drop_path=0.3)
BEHIND = (0, 20)  # milliseconds that a GPU is busy before it looks at a batch
CYCLES = 1_800_000  # of a GPU in a millisecond, about
# How far from the CPU's weights in float32 a device may end after four steps, as a share of their way. Adam's first
# steps are as long for the smallest gradients, whose signs rounding may turn, as for the largest.
FARTHEST = {"fp32": 0.02, "bf16": 0.5}


def is_right(row: dict) -> bool:
    return "most" not in row or row["value"] <= row["most"]


def ceilings(device: torch.device) -> list[dict]:
    """Products of large matrices, copies on the device, and copies to it from pinned memory."""
    rows = [row("ceilings", "matrix product", Matmul(device, precision("auto", device))() / 1e12, "TFLOP/s")]
    size = 2**31 if device.type == "cuda" else 2**26
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.empty(size // 8, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for name, moved, copy in (
        ("copy, read and written", 2 * size, lambda: target.copy_(source)),
        ("copy to the device", size // 8, lambda: target[: size // 8].copy_(host, non_blocking=True)),
    ):
        clock = Clock(device)
        for phase in ("start", "data", "start", *["data"] * 10):
            copy()
            clock(phase)
        rows.append(row("ceilings", name, moved / 1e9 / min(taken["data"] for taken in clock.phases()), "GB/s"))
    return rows


def loader(device: torch.device, beton: Path) -> list[dict]:
    """Batches of a device that is behind, against those of a loader for the CPU."""
    stage = load_recipe(ROOT / "recipes/smoke.yaml", {"stage.batch": "32"}).stages[0]
    data = describe(beton)

    def batches(place, milliseconds=0):
        placed, seen = Placement(device=place), []
        for batch in train_loader(data.path, data.samples, stage, seed=0, placement=placed).epoch(0):
            if place.type == "cuda" and milliseconds:
                torch.cuda._sleep(milliseconds * CYCLES)
            seen.append([part.clone() for part in batch])
        return [[part.cpu() for part in batch] for batch in seen]

    rows, expected = [], batches(CPU)
    for milliseconds in BEHIND:
        seen = batches(device, milliseconds)
        wrong = sum(not all(map(torch.equal, one, other)) for one, other in zip(seen, expected, strict=True))
        rows.append(row("loader", f"wrong of {len(seen)}, {milliseconds} ms behind", wrong, "batches", most=0))
    return rows


def take_step(run: Run, stage: Stage, *, spoil: bool = False) -> tuple[float, float]:
    """A step on random images, the same on every device: its loss, and 1.0 where it was left out. spoil: its gradient
    is not finite."""
    torch.manual_seed(stage.step)
    host = replace(run, ranks=run.ranks._replace(device=CPU))
    batch = [part.to(run.ranks.device) for part in random_batch(host, stage.config, stage.config.batch)]
    loss = forward_backward(run, stage, *batch)
    if spoil:
        next(stage.model.parameters()).grad.fill_(math.nan)
    return loss.item(), update(stage, loss).item()


def trained(run: Run, steps: int) -> tuple[Stage, list[float]]:
    """A stage after its first steps, and their losses."""
    stage = begun(run)
    return stage, [take_step(run, stage)[0] for _ in range(steps)]


def flat(stage: Stage) -> Tensor:
    """All weights, float64 on the host."""
    return torch.cat([weight.detach().double().cpu().flatten() for weight in stage.model.parameters()])


@contextmanager
def without_tf32():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def parity(device: torch.device, optimizers=("lamb", "adamw", "sgd"), types=FARTHEST, **keys) -> list[dict]:
    """Four steps on the device against the CPU's in float32. types: of the matrix products; keys: of `run_of`, for the
    device."""
    rows, drop_path = [], keys.get("drop_path", "exact")
    for optimizer in optimizers:
        on_cpu = run_of(TINY, CPU, products="fp32", drop_path=drop_path, optimizer=optimizer)
        first = flat(begun(on_cpu))
        stage, losses = trained(on_cpu, steps=4)
        last = flat(stage)
        for name in types:
            with without_tf32():
                stage, told = trained(run_of(TINY, device, products=name, optimizer=optimizer, **keys), steps=4)
            off = ((flat(stage) - last).norm() / (last - first).norm()).item()
            task, most = f"{optimizer}, {name}, {drop_path}", FARTHEST[name]
            rows.append(row("parity", f"{task}: weights", off, "of their way", most=most))
            off = max(abs(one - other) / other for one, other in zip(told, losses, strict=True))
            rows.append(row("parity", f"{task}: loss", off, "of it", most=most / 10))
    return rows


def state_of(stage: Stage) -> list[Tensor]:
    """Copies of all tensors of a stage's state, on the host: weights, their average, moments."""
    return [tensor.detach().cpu().clone() for tensor in tree_leaves(stage.state_dict()) if isinstance(tensor, Tensor)]


def differing(one: list[Tensor], other: list[Tensor]) -> int:
    return sum(not torch.equal(*pair) for pair in zip(one, other, strict=True))


def bad_step(device: torch.device) -> list[dict]:
    """A step whose gradient is not finite moves nothing, and says so."""
    run = run_of(TINY, device)
    stage, _ = trained(run, steps=1)
    before = state_of(stage)
    _, left_out = take_step(run, stage, spoil=True)
    return [
        row("bad step", "tensors that moved", differing(before, state_of(stage)), "tensors", most=0),
        row("bad step", "not noticed", 1 - left_out, "steps", most=0),
    ]


def checkpoint(device: torch.device) -> list[dict]:
    """What was saved is what is loaded, and on the device."""
    run = run_of(TINY, device)
    with tempfile.TemporaryDirectory() as out:
        folder = RunFolder(replace(run.recipe, log=replace(run.recipe.log, out=out)))
        stage, _ = trained(run, steps=2)
        folder.save(stage.state_dict(), {}, is_main=True)
        again = create_stage(run, 0)
        again.load_state_dict(folder.load())
    moments = [value for state in again.optimizer.state.values() for value in state.values()]
    elsewhere = sum(moment.device.type != device.type for moment in moments)
    return [
        row("checkpoint", "tensors that differ", differing(state_of(stage), state_of(again)), "tensors", most=0),
        row("checkpoint", "moments elsewhere", elsewhere, "tensors", most=0),
    ]


def repeatable(device: torch.device) -> list[dict]:
    """The same three steps twice, as they are and with `speed.deterministic`, each way in a process of its own."""
    rows = []
    for name, most in (("as it is", None), ("deterministic", 0)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            weights = pool.submit(_changing_weights, device.type, most == 0).result()
        rows.append(row("repeatable", f"{name}: weights that change", weights, "weights", most=most))
    return rows


def _changing_weights(device_type: str, deterministic: bool) -> int:
    if deterministic:
        make_deterministic()
    task = TASKS["S224"]._replace(batch=64) if device_type == "cuda" else TINY
    one, other = (flat(trained(run_of(task, torch.device(device_type)), steps=3)[0]) for _ in range(2))
    return int((one != other).sum())
