"""All contenders of a task in turns, one step each: images/s, phases, share of what the machine could do, memory."""

import statistics

import torch
from training.step import random_batch

import train_imagenet
from bench import report
from bench.command import say
from bench.step import memory
from bench.step.clock import PHASES, Clock
from bench.step.contenders import contender
from bench.step.tasks import Task, job_of
from bench.step.work import Matmul, macs


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
            peak = memory.warm(steps[who], batches[who], device)
        except torch.OutOfMemoryError as error:
            say(f"{name}: {who} is left out: {error}")
            for kept in (clocks, steps, batches):
                kept.pop(who, None)
            continue
        if device.type == "cpu" and options.memory:
            peak = memory.in_its_own_process(who, task, options.compile)
        if peak:
            rows.append(report.row(f"{name} memory", who, [peak / 2**20], "MiB"))
    if not clocks:
        return rows
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
    return rows + _rows(name, task, {who: clock.phases() for who, clock in clocks.items()}, ceilings)


def _rows(name: str, task: Task, taken: dict[str, list[dict]], ceilings: list[float]) -> list[dict]:
    """Of the seconds that each contender's phases have `taken` in each step, and FLOP/s of matrix products."""
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
        ratios = [peer["step"] / ours["step"] for ours, peer in zip(taken["ours"], taken[who], strict=True)]
        rows.append(report.row(f"{name} ratio", who, ratios, "times ours"))
    return rows
