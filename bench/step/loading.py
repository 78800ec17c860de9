"""Steps that our loader feeds: how long do they wait for data?"""

import time
from pathlib import Path

import torch

from bench import report
from bench.step.ours import OurStep
from bench.step.tasks import TASKS, job_of
from ffcv_ops.loader import Placement, train_loader
from ffcv_ops.storage.index import describe


def measure_loading(path: Path, options, device) -> list[dict]:
    """Steps of `ours` that are fed by our loader from a .beton at 128 px: share of the time that they wait."""
    task = TASKS["S224" if device.type == "cuda" else "S112"]._replace(resolution=128)
    run = job_of(task, drop_path="subset", compiles=options.compile, device=device)
    stage, data = run.recipe.stages[0], describe(path)
    step = OurStep(run, stage, device=device, mark=lambda phase: None)
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
