"""What a step is made of besides the model: the optimizer, the average, the mixing."""

import functools

import timm.optim
import torch
from timm.utils import ModelEmaV3
from training.step import random_batch

import train_imagenet
from bench import report
from bench.step.clock import Clock
from bench.step.tasks import Task, job_of
from training import mixing, optim


def measure_parts(task: Task, options, device) -> list[dict]:
    """Each beside its peers, in turns. Returns rows."""
    run = job_of(task, drop_path="exact", compiles=False, device=device)
    stage = run.recipe.stages[0]
    state, rows = train_imagenet.begin_stage(run, 0, None, 0), []
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
    images, labels = random_batch(run, stage, stage.batch)
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
