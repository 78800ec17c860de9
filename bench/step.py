"""How long does a training step take, and where? Ours beside a loop like the official code's, and timm compiled.

    python -m bench.step [--quick] [--tasks S112,depth] [--only ours,reference] [--json FILE] [--beton FILE]

ours           training/step.py with `speed.drop_path: subset` and `speed.compile: true`
exact          the same with a mask for stochastic depth, as in the paper
ours-bf16      ours under bfloat16 autocast on a CPU that has such products; there the others compute in float32
reference      bench/reference_step.py: eager, waits in each step, masks, LAMB parameter by parameter, unfused attention
timm-compiled  timm's model, Mixup, Lamb and ModelEmaV3 in a plain loop, the model under torch.compile

All train the same model with LAMB on random uint8 images in host memory (float ones where the peer's loader makes
those). They take turns, one step each, so that a machine whose speed drifts is the same to all. Medians, in brackets
the range. Phases: `data` brings the batch to the device; `forward` mixes and goes to the logits or the loss. On a GPU
phases are its own times between events, and steps are not waited for, except by who waits.

`share`: multiply-adds of the model (those left out by `subset` not counted) as a share of what a square matrix product
reaches in the same turns. `memory`: peak, on a GPU of its memory, else of a process of its own, above what it had.
`--beton`: trains from that file through our loader, and tells how long steps wait for data.
"""

import argparse
import copy
import functools
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import timm
import timm.optim
import torch
from timm.data import Mixup
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F

import train_imagenet
from bench import machine, report
from bench.reference_step import ReferenceStep
from ffcv_ops.errors import BadInput, exits_cleanly
from training import compiling, depth, distributed, mixing, model, optim, recipe
from training.datasets import DataSet
from training.step import Job, gradients, random_batch, update

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("data", "forward", "backward", "optimizer")


class Task(NamedTuple):
    """A step: the model at a resolution, samples at once and rate of stochastic depth."""

    title: str
    model: str
    resolution: int
    batch: int
    drop_path: float
    on: str  # cpu or cuda
    contenders: tuple[str, ...]


ALL, DEPTH = ("ours", "exact", "reference", "timm-compiled"), ("ours", "exact")
ON_CPU = (*ALL, "ours-bf16")
SMALL, BASE = "deit3_small_patch16_224", "deit3_base_patch16_224"
TASKS = {
    "S112": Task("ViT-S/16, 112 px, batch 16, stochastic depth .05", SMALL, 112, 16, 0.05, "cpu", ON_CPU),
    "depth.45": Task("ViT-S/16, 112 px, batch 32, stochastic depth .45", SMALL, 112, 32, 0.45, "cpu", DEPTH),
    "depth.05": Task("ViT-S/16, 112 px, batch 32, stochastic depth .05", SMALL, 112, 32, 0.05, "cpu", DEPTH),
    "S224": Task("ViT-S/16, 224 px, batch 256, stochastic depth .05", SMALL, 224, 256, 0.05, "cuda", ALL),
    "B192": Task("ViT-B/16, 192 px, batch 256, stochastic depth .2", BASE, 192, 256, 0.2, "cuda", ALL),
}
QUICK = TASKS["S112"]._replace(title="quick: 6 blocks, 48 px, batch 16", model="deit3_micro_patch16_224", resolution=48)


def say(words):
    print(words, file=sys.stderr, flush=True)


# --- contenders: prepare(images, labels) once, then called with what it gave -----------------------------------------


class OurStep:
    """The step of train_imagenet.py."""

    def __init__(self, job, stage, *, device, mark):
        self.job, self.stage, self.mark = job, stage, mark
        self.state = train_imagenet.begin_stage(job, 0, None, 0)
        self.state.model.train()
        if job.run.speed.compile:
            compiling.compile_stage(job, self.state, stage, stage.batch, say=say)

    def prepare(self, images, labels):
        return images, labels

    def __call__(self, images, labels):
        device = self.job.ranks.device
        images, labels = distributed.sent(images, device), distributed.sent(labels, device)
        self.mark("data")
        given = {"step": self.state.step, "seed": 0, "piece": self.stage.batch}
        loss = gradients(self.job, self.state, self.stage, self.forward, images, labels, **given)
        self.mark("backward")
        update(self.job, self.state, self.stage, loss)
        self.mark("optimizer")

    def forward(self, inputs):
        logits = self.state.model(inputs)
        self.mark("forward")
        return logits


class TimmStep:
    """timm's parts in a plain loop that does not wait, with the model compiled."""

    def __init__(self, job, stage, *, device, mark):
        self.device, self.job, self.mark = device, job, mark
        classes = job.sets[stage.data].classes
        network = timm.create_model(
            job.run.model.name, num_classes=classes, img_size=stage.resolution, init_values=job.run.model.layer_scale
        ).to(device)
        for block in network.blocks if stage.drop_path else ():
            block.drop_path1, block.drop_path2 = DropPath(stage.drop_path), DropPath(stage.drop_path)
        self.network, self.model = network, torch.compile(network.train(), dynamic=False)
        groups = optim.parameter_groups(network, stage.weight_decay)
        self.optimizer = timm.optim.Lamb(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps)
        self.average = ModelEmaV3(network, decay=stage.ema, foreach=True)
        self.mixup = Mixup(stage.mixup, stage.cutmix, label_smoothing=stage.smoothing, num_classes=classes)

    def prepare(self, images, labels):
        return mixing.normalize(images), labels

    def __call__(self, images, labels):
        images, labels = distributed.sent(images, self.device), distributed.sent(labels, self.device)
        self.mark("data")
        images, targets = self.mixup(images, labels)
        with self.job.autocast():
            loss = F.binary_cross_entropy_with_logits(self.model(images), (targets > 0).float())
        self.mark("forward")
        loss.backward()
        self.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.network)
        self.mark("optimizer")


def job_of(task: Task, *, drop_path: str, compiles: bool, device: torch.device, precision: str = "auto") -> Job:
    keys = {
        "model.name": task.model, "stage.resolution": task.resolution, "stage.batch": task.batch,
        "stage.mix_chunk": task.batch, "stage.drop_path": task.drop_path, "speed.drop_path": drop_path,
        "speed.compile": compiles, "speed.device": device.type,
    }  # fmt: skip
    run = recipe.load(ROOT / "recipes/vit_s_800ep.yaml", {key: str(value) for key, value in keys.items()})
    ranks = distributed.Ranks(0, 0, 1, device)
    return Job(run, ranks, {"main": DataSet(None, None, 1000)}, train_imagenet.precision(precision, device))


def contender(name: str, task: Task, *, compiles: bool, device: torch.device, mark):
    law, precision = ("subset" if name.startswith("ours") else "exact"), ("bf16" if name == "ours-bf16" else "auto")
    job = job_of(task, drop_path=law, compiles=compiles, device=device, precision=precision)
    kinds = {"reference": ReferenceStep, "timm-compiled": TimmStep}
    return kinds.get(name, OurStep)(job, job.run.stages[0], device=device, mark=mark)


# --- measuring -----------------------------------------------------------------------------------------------------


class Clock:
    """Times at the ends of phases; a GPU's own, which are read when all is done."""

    def __init__(self, device):
        self.gpu, self.marks = device.type == "cuda", []

    def __call__(self, phase):
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


def measure_task(name: str, task: Task, options, device) -> list[dict]:
    """All contenders of a task in turns. Returns rows."""
    clocks, steps, batches = {}, {}, {}
    host = job_of(task, drop_path="exact", compiles=False, device=torch.device("cpu"))
    images, labels = random_batch(host, host.run.stages[0], task.batch)
    rows = []
    for who in [who for who in task.contenders if who in options.only]:
        if who == "ours-bf16" and not torch.cpu._is_avx512_bf16_supported():
            say(f"{name}: {who} is left out: this CPU has no bfloat16 products")
            continue
        say(f"{name}: preparing {who}")
        try:
            clocks[who] = Clock(device)
            steps[who] = contender(who, task, compiles=options.compile, device=device, mark=clocks[who])
            batches[who] = steps[who].prepare(images, labels)
            memory = warm(steps[who], batches[who], device)
        except torch.OutOfMemoryError as error:
            say(f"{name}: {who} is left out: {error}")
            continue
        if device.type == "cpu" and options.memory:
            memory = in_its_own_process(who, task, options.compile)
        if memory:
            rows.append(report.row(f"{name} memory", who, [memory / 2**20], "MiB"))
    product = Matmul(device, train_imagenet.precision("auto", device))
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
    rows.append(report.row(f"{name} ceiling", "matmul", [value / 1e12 for value in ceilings], "TFLOP/s"))
    taken = {who: clock.phases() for who, clock in clocks.items()}
    for who, every in taken.items():
        rows.append(report.row(name, who, [task.batch / one["step"] for one in every], "images/s"))
        for phase in ("step", *PHASES):
            rows.append(report.row(f"{name} {phase}", who, [1000 * one.get(phase, 0.0) for one in every], "ms"))
        if who != "ours-bf16":  # the products that tell the ceiling are float32 there
            seconds = statistics.median(one["step"] for one in every)
            rate = 6e9 * macs(task, subset=who == "ours") * task.batch / seconds
            rows.append(report.row(f"{name} share", who, [100 * rate / statistics.median(ceilings)], "% of matmul"))
    for who in taken if "ours" in taken else ():
        ratios = [peer["step"] / ours["step"] for ours, peer in zip(taken["ours"], taken[who], strict=True)]
        rows.append(report.row(f"{name} ratio", who, ratios, "times ours"))
    return rows


def warm(step, batch, device) -> int:
    """Two steps, which compile and make the moments. Returns the peak of a GPU's memory, else 0."""
    if device.type != "cuda":
        step(*batch), step(*batch)
        return 0
    before = torch.cuda.memory_allocated() - sum(p.nbytes for p in getattr(step, "model", nn.Module()).parameters())
    torch.cuda.reset_peak_memory_stats()
    step(*batch), step(*batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def in_its_own_process(who, task, compiles) -> int:
    """Peak resident memory of two steps above what the process had before, bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, who, task, compiles).result()


def _peak(who, task, compiles):
    cpu = torch.device("cpu")
    torch.set_num_threads(distributed.threads())
    job = job_of(task, drop_path="exact", compiles=False, device=cpu)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = contender(who, task, compiles=compiles, device=cpu, mark=lambda phase: None)
    warm(step, step.prepare(*random_batch(job, job.run.stages[0], task.batch)), cpu)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


class Matmul:
    """A product of square matrices, of a size that the device is fastest with; called, gives FLOP/s."""

    def __init__(self, device, precision):
        self.device, self.size = device, 8192 if device.type == "cuda" else 2048
        self.one, self.other = (torch.randn(self.size, self.size, device=device, dtype=precision) for _ in range(2))

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
    whole, outside = model.macs(network, task.resolution), model.macs(rest, task.resolution)
    kept = depth.most_kept(task.drop_path, 0, task.batch) / task.batch if subset else 1.0
    return outside + kept * (whole - outside)


def measure_parts(options, device) -> list[dict]:
    """What a step is made of besides the model: the optimizer, the average, the mixing."""
    task = QUICK if options.quick else TASKS["S112"]
    job = job_of(task, drop_path="exact", compiles=False, device=device)
    stage = job.run.stages[0]
    state, rows = train_imagenet.begin_stage(job, 0, None, 0), []
    for parameter in state.model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    groups = functools.partial(optim.parameter_groups, state.model, stage.weight_decay)
    keys = {"lr": 1e-6, "betas": stage.betas, "eps": stage.eps}
    lamb = {
        "ours": optim.build(state.model, stage).step,
        "timm": timm.optim.Lamb(groups(), **keys).step,
        "timm-foreach": timm.optim.Lamb(groups(), foreach=True, **keys).step,
        "timm-loop": timm.optim.Lamb(groups(), foreach=False, **keys).step,
    }
    none = torch.zeros((), device=device)
    timms = ModelEmaV3(state.model, decay=stage.ema, foreach=True)
    average = {
        "ours": lambda: optim.average(state.average, state.model, stage.ema, skipped=none),
        "timm-foreach": lambda: timms.update(state.model),
    }
    images, labels = random_batch(job, stage, stage.batch)
    plan = mixing.plan(0, 0, stage, offset=0, count=stage.batch).to(device)
    law = {"classes": 1000, "smoothing": 0.0}
    mix = {"eager": lambda: mixing.mix(images, labels, plan, **law)}
    if options.compile:
        fast = torch.compile(mixing.mix, dynamic=False)
        mix["compiled"] = lambda: fast(images, labels, plan, **law)
    for title, ways in (("LAMB", lamb), ("average", average), ("mixing", mix)):
        rows += take_turns(f"{title} {task.model.split('_')[1]}", ways, options, device)
    return rows


def take_turns(name, ways, options, device) -> list[dict]:
    """Seconds of each of some functions, in turns; of a first few calls none."""
    clocks = {who: Clock(device) for who in ways}
    for way in ways.values():
        way(), way()
    for _ in range(4 * options.repeats):
        for who, way in ways.items():
            clocks[who]("start")
            way()
            clocks[who]("data")
    return [report.row(name, who, [1000 * s["step"] for s in clock.phases()], "ms") for who, clock in clocks.items()]


def measure_loading(path: Path, options, device) -> list[dict]:
    """Steps of `ours` that are fed by our loader from a .beton at 128 px: share of the time that they wait."""
    from ffcv_ops.fields import describe
    from ffcv_ops.loader import train_loader

    task = TASKS["S224" if device.type == "cuda" else "S112"]._replace(resolution=128)
    job = job_of(task, drop_path="subset", compiles=options.compile, device=device)
    stage, data = job.run.stages[0], describe(path)
    step = OurStep(job, stage, device=device, mark=lambda phase: None)
    loader = train_loader(data.path, data.samples, stage, seed=0, rank=0, world=1, workers="auto", device=device)
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


# --- the command line ----------------------------------------------------------------------------------------------


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two turns")
    parser.add_argument("--tasks", help=f"some of {','.join(TASKS)},parts (those of the device)")
    parser.add_argument("--only", help=f"some of {','.join(ON_CPU)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--repeats", type=int, help="turns (7; quick: 2)")
    parser.add_argument("--steps", type=int, help="of each in a turn (1; on a GPU 5)")
    parser.add_argument("--compile", choices=("true", "false"), help="ours and exact (true; quick: false)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (on a CPU it takes a process)")
    parser.add_argument("--beton", type=Path, help="also train from this file, at 128 px")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.compile = options.compile == "true" if options.compile else not options.quick
    options.repeats = options.repeats or (2 if options.quick else 7)
    options.steps = options.steps or (5 if options.device == "cuda" and not options.quick else 1)
    options.memory = not (options.quick or options.no_memory)
    known = [name for name, task in TASKS.items() if task.on == options.device] + ["parts"]
    options.tasks = _chosen("task", options.tasks, known, ["quick", "parts"] if options.quick else known)
    options.only = _chosen("contender", options.only, ON_CPU, ALL[:3] if options.quick else ON_CPU)
    return options


def _chosen(kind, words, known, default):
    names = words.split(",") if words else default
    for name in names:
        if words and name not in known:
            raise BadInput(f"{name!r} is not a {kind} here; there are {', '.join(known)}")
    return names


def describe_machine(device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return machine.describe() | {"device": name, "threads": torch.get_num_threads()}


def grids(rows) -> list[report.Grid]:
    """A table of the steps, a column for each measure, and one of the rest."""
    tasks = [row["task"] for row in rows if row["unit"] == "images/s" and row["task"] != "loading"]
    found = {(row["task"], row["name"]): row for row in rows}
    made = []
    for task in dict.fromkeys(tasks):
        measures = ["", " step", *(f" {phase}" for phase in PHASES), " ratio", " share", " memory"]
        header = ["", *(found_unit(rows, task + measure, measure) for measure in measures)]
        names = [row["name"] for row in rows if row["task"] == task]
        lines = [[who, *(cell(found.get((task + measure, who))) for measure in measures)] for who in names]
        made.append(report.Grid(TASKS[task].title if task in TASKS else QUICK.title, header, lines))
    others = [row for row in rows if row["task"].endswith("ceiling") or not row["task"].startswith(tuple(tasks))]
    if others:
        lines = [[f"{row['task']}: {row['name']}", cell(row), row["unit"]] for row in others]
        made.append(report.Grid("parts of a step", ["", "median", "unit"], lines))
    return made


def found_unit(rows, task, measure) -> str:
    units = [row["unit"] for row in rows if row["task"] == task]
    return f"{measure.strip()} {units[0]}".strip() if units else measure.strip()


def cell(row) -> str:
    if row is None:
        return "-"
    if row["n"] == 1 or row["lo"] == row["hi"]:
        return f"{row['value']:.4g}"
    return f"{row['value']:.4g} [{row['lo']:.4g}-{row['hi']:.4g}]"


@exits_cleanly
def main(argv=None):
    options = parse(argv)
    device = torch.device(options.device)
    torch.set_num_threads(distributed.threads())
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    rows = []
    for name in options.tasks:
        if name == "parts":
            rows += measure_parts(options, device)
        else:
            rows += measure_task(name, TASKS.get(name, QUICK), options, device)
    if options.beton:
        rows += measure_loading(options.beton, options, device)
    described = describe_machine(device)
    for grid in grids(rows):
        report.show(grid)
    print(f"{described['device']}; {machine.in_words(described)}")
    if options.json:
        report.write_json(options.json, described, rows)


if __name__ == "__main__":
    main()
