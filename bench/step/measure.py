"""Steps interleaved: images/s, phases, share of what the machine could do, memory; and the parts of a step."""

import copy
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm.optim
import torch
from timm.utils import ModelEmaV3
from torch import nn

from bench import report
from bench.report import say
from bench.step.baselines import TASKS, OurStep, Task, run_of, step_of
from ffcv_ops import mixing
from ffcv_ops.storage.index import describe
from training import distributed, optim
from training.loading import Placement, train_loader
from training.memory.micro_batch import random_batch
from training.network import model, stochastic_depth
from training.planning import cost
from training.run import precision
from training.stage import create_stage

CPU = torch.device("cpu")
PHASES = ("data", "forward", "backward", "optimizer")


class Clock:
    """Called at the end of each phase; a GPU's own times, which are read when all is done."""

    def __init__(self, device: torch.device):
        self.gpu, self.marks = device.type == "cuda", []

    def __call__(self, phase: str):
        if self.gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((phase, moment))

    def phases(self) -> list[dict[str, float]]:
        """Seconds of each phase of each step, and of the whole `step`."""
        if self.gpu:
            torch.cuda.synchronize()
        steps = []
        for (_, before), (phase, after) in zip(self.marks, self.marks[1:], strict=False):
            if phase == "start":
                continue
            if phase == "data":
                steps.append({})
            steps[-1][phase] = before.elapsed_time(after) / 1000 if self.gpu else after - before
        return [{**step, "step": sum(step.values())} for step in steps]


# --- whole steps ---------------------------------------------------------------------------------------------------


def measure_task(name: str, task: Task, options, device: torch.device) -> list[dict]:
    """All steps of a task, interleaved. Returns rows."""
    clocks, steps, batches, rows = {}, {}, {}, []
    host = run_of(task, CPU)
    images, labels = random_batch(host, host.recipe.stages[0], task.batch)
    for who in [who for who in task.steps if who in options.only]:
        if who == "ours-bf16" and not torch.cpu._is_avx512_bf16_supported():
            say(f"{name}: {who} is left out: this CPU has no bfloat16 products")
            continue
        say(f"{name}: preparing {who}")
        try:
            clocks[who] = Clock(device)
            steps[who] = step_of(who, task, compiles=options.compile, device=device, mark=clocks[who])
            batches[who] = steps[who].prepare(images, labels)
            peak = warm_up(steps[who], batches[who], device)
        except torch.OutOfMemoryError as error:
            say(f"{name}: {who} is left out: {error}")
            for kept in (clocks, steps, batches):
                kept.pop(who, None)
            continue
        if device.type == "cpu" and options.memory:
            peak = memory_of_a_process(who, task, options.compile)
        if peak:
            rows.append(report.row(f"{name} memory", who, peak / 2**20, "MiB"))
    if not clocks:
        return rows
    product = Matmul(device, precision("auto", device))
    ceilings = []
    for clock in clocks.values():
        clock.marks.clear()
    for turn in range(options.repeats):
        ceilings.append(product())
        order = [*clocks]
        for who in order[turn % len(order) :] + order[: turn % len(order)]:
            for _ in range(options.steps):
                clocks[who]("start")
                steps[who](*batches[who])
    return rows + _rows(name, task, {who: clock.phases() for who, clock in clocks.items()}, ceilings)


def _rows(name: str, task: Task, taken: dict[str, list[dict]], ceilings: list[float]) -> list[dict]:
    """Of the seconds that each one's phases have `taken` in each step, and FLOP/s of matrix products."""
    rows = [report.row(f"{name} ceiling", "matmul", [value / 1e12 for value in ceilings], "TFLOP/s")]
    for who, every in taken.items():
        rows.append(report.row(name, who, [task.batch / one["step"] for one in every], "images/s"))
        for phase in ("step", *PHASES):
            rows.append(report.row(f"{name} {phase}", who, [1000 * one.get(phase, 0.0) for one in every], "ms"))
        if who != "ours-bf16":  # the products that tell the ceiling are float32 there
            seconds = statistics.median(one["step"] for one in every)
            rate = 6e9 * macs(task, subset=who == "ours") * task.batch / seconds
            rows.append(report.row(f"{name} share", who, [100 * rate / statistics.median(ceilings)], "% of matmul"))
    for who in taken if "ours" in taken else ():
        ratios = [other["step"] / ours["step"] for ours, other in zip(taken["ours"], taken[who], strict=True)]
        rows.append(report.row(f"{name} ratio", who, ratios, "times ours"))
    return rows


class Matmul:
    """A product of square matrices, of a size that the device is fastest with; called, gives FLOP/s."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.size = device, 8192 if device.type == "cuda" else 2048
        self.one, self.other = (torch.randn(self.size, self.size, device=device, dtype=dtype) for _ in range(2))

    def __call__(self) -> float:
        repeats = 20 if self.device.type == "cuda" else 2
        clock = Clock(self.device)
        clock("start")
        for _ in range(repeats):
            self.one @ self.other
        clock("data")
        return repeats * 2 * self.size**3 / clock.phases()[0]["data"]


@functools.cache
def macs(task: Task, *, subset: bool) -> float:
    """Multiply-adds (10^9) of an image's forward pass; with `subset`, of the samples that the branches compute."""
    network = model.create(task.model, resolution=task.resolution, classes=1000, drop_path=0.0, layer_scale=1e-4)
    rest = copy.deepcopy(network)
    rest.blocks = nn.Sequential()
    whole, outside = cost.gmacs(network, task.resolution), cost.gmacs(rest, task.resolution)
    kept = stochastic_depth.most_kept(task.drop_path, 0, task.batch) / task.batch if subset else 1.0
    return outside + kept * (whole - outside)


# --- memory --------------------------------------------------------------------------------------------------------


def warm_up(step, batch: tuple, device: torch.device) -> int:
    """Two steps, which compile and make the moments. Returns the peak of a GPU's memory with the weights, else 0."""
    if device.type != "cuda":
        step(*batch), step(*batch)
        return 0
    weights = [*step.network.parameters(), *step.average.parameters()]
    before = torch.cuda.memory_allocated() - sum(weight.nbytes for weight in weights)
    torch.cuda.reset_peak_memory_stats()
    step(*batch), step(*batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def memory_of_a_process(who: str, task: Task, compiles: bool) -> int:
    """Peak resident memory, in bytes, of two steps on the CPU above what their process had before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, who, task, compiles).result()


def _peak(who, task, compiles):
    torch.set_num_threads(distributed.threads())
    run = run_of(task, CPU)
    before = _peak_resident()
    step = step_of(who, task, compiles=compiles, device=CPU, mark=lambda phase: None)
    warm_up(step, step.prepare(*random_batch(run, run.recipe.stages[0], task.batch)), CPU)
    return _peak_resident() - before


def _peak_resident() -> int:
    """Bytes. (What `resource` tells would begin with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


# --- parts of a step, and a step that a loader feeds ----------------------------------------------------------------


def measure_parts(task: Task, options, device: torch.device) -> list[dict]:
    """The optimizer, the average and the mixing, each beside its baselines. Returns rows."""
    run = run_of(task, device)
    stage = create_stage(run, 0)
    config = stage.config
    for parameter in stage.model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    groups = functools.partial(optim.parameter_groups, stage.model, config.weight_decay)
    keys = {"lr": 1e-6, "betas": config.betas, "eps": config.eps}
    lamb = {
        "ours": optim.build(stage.model, config).step,
        "timm": timm.optim.Lamb(groups(), **keys).step,
        "timm-foreach": timm.optim.Lamb(groups(), foreach=True, **keys).step,
        "timm-loop": timm.optim.Lamb(groups(), foreach=False, **keys).step,
    }
    none = torch.zeros((), device=device)
    timms = ModelEmaV3(stage.model, decay=config.ema, foreach=True)
    average = {
        "ours": lambda: optim.update_average(stage.average, skip=none),
        "timm-foreach": lambda: timms.update(stage.model),
    }
    images, labels = random_batch(run, config, config.batch)
    how = mixing.Mixing(config.mixup, config.cutmix, config.mix_chunk)
    draws = mixing.mix_params(how, 0, 0, resolution=config.resolution, first=0, samples=config.batch).to(device)
    targets = {"classes": 1000, "smoothing": 0.0}
    mix = {"eager": lambda: mixing.mix(images, labels, draws, **targets)}
    if options.compile:
        fast = torch.compile(mixing.mix, dynamic=False)
        mix["compiled"] = lambda: fast(images, labels, draws, **targets)
    rows = []
    for title, ways in (("LAMB", lamb), ("average", average), ("mixing", mix)):
        rows += interleaved(f"{title} {task.model.split('_')[1]}", ways, options, device)
    return rows


def interleaved(name: str, ways: dict[str, Callable], options, device: torch.device) -> list[dict]:
    """Milliseconds of each of some functions, one call each in turn; not of two first calls."""
    clocks = {who: Clock(device) for who in ways}
    for way in ways.values():
        way(), way()
    for _ in range(4 * options.repeats):
        for who, way in ways.items():
            clocks[who]("start")
            way()
            clocks[who]("data")
    return [report.row(name, who, [1000 * s["step"] for s in clock.phases()], "ms") for who, clock in clocks.items()]


def measure_loading(path: Path, options, device: torch.device) -> list[dict]:
    """Steps of `ours` that are fed by our loader from a .beton at 128 px: share of the time that they wait."""
    task = TASKS["S224" if device.type == "cuda" else "S112"]._replace(resolution=128)
    run = run_of(task, device, drop_path="subset", compiles=options.compile)
    stage, data = run.recipe.stages[0], describe(path)
    step = OurStep(run, mark=lambda phase: None)
    loader = train_loader(data.path, data.samples, stage, seed=0, placement=Placement(device=device))
    shares, rates = [], []
    for turn in range(options.repeats + 1):
        waited, began, taken, count = 0.0, time.perf_counter(), time.perf_counter(), 0
        for images, labels in loader.epoch(turn):
            waited += time.perf_counter() - taken
            step(images, labels)
            taken, count = time.perf_counter(), count + 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        shares.append(100 * waited / seconds)
        rates.append(count * stage.batch / seconds)
    return [report.row("loading wait", "ours", shares[1:], "% of time"),
            report.row("loading", "ours", rates[1:], "images/s")]  # fmt: skip
