"""Where a step's time goes on a GPU: kernels by kind, how many are launched, and how long the host takes to send it."""

import re
import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from bench.report import row
from bench.step.baselines import OurStep, Task, run_of
from bench.step.measure import CPU
from training.memory.micro_batch import random_batch

KINDS = {  # the first that a kernel's name has
    "attention": r"flash|fmha|sdpa|cudnn.*attn|attention",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|wgmma|splitK|aten::(add)?mm|aten::bmm",
    "convolution": r"conv|implicit|wgrad|dgrad|cudnn",
    "optimizer, norms, average": r"multi_tensor|foreach|fused_?(adam|sgd)|lamb_|lpnorm",
    "compiled by Triton": r"triton|cpp_fused",
    "copies": r"memcpy|memset|copy",
    "gathers": r"index|scatter|gather",
    "reductions": r"reduce",
    "pointwise": r"elementwise|vectorized",
    "other": "",
}


def kind_of(kernel: str) -> str:
    return next(kind for kind, names in KINDS.items() if re.search(names, kernel, re.IGNORECASE))


def profiled(task: Task, device: torch.device, *, drop_path: str, compiles: bool = True, steps: int = 20) -> list[dict]:
    """Rows of a step as a run takes it, on a batch at hand. On a CPU the times of operations stand in for kernels'."""
    gpu = device.type == "cuda"
    step = OurStep(run_of(task, device, drop_path=drop_path, compiles=compiles), mark=lambda phase: None)
    host = run_of(task, CPU)
    batch = step.prepare(*random_batch(host, host.recipe.stages[0], task.batch))
    wait = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(3):
        step(*batch)
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step(*batch)
    sent = time.perf_counter() - began
    wait()
    taken = (time.perf_counter() - began) / steps
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as trace:
        step(*batch), step(*batch)
        wait()
    times, launches = Counter(), Counter()
    for event in trace.key_averages():
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        if microseconds > 0:
            times[kind_of(event.key)] += microseconds / 2000
            launches[kind_of(event.key)] += event.count / 2
    name = f"profile of {task.title}, {drop_path}"
    rows = [
        row(name, "step", 1000 * taken, "ms"),
        row(name, "speed", task.batch / taken, "images/s"),
        row(name, "until the host has sent it", 1000 * sent / steps, "ms"),
        row(name, "kernels", sum(launches.values()), "launches"),
    ]
    if gpu:
        rows.append(row(name, "peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB"))
    return rows + [row(name, kind, milliseconds, "ms") for kind, milliseconds in times.most_common()]
