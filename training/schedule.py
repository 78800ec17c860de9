"""The learning rate of a step: a pure function. Warm-up is linear and is followed by half a cosine.

In: the step within its stage (0 is the first) and the stage's keys. Out: the learning rate of that step.

epoch: as the official loop does it. The rate stands still for an epoch and comes one epoch late, so that epochs 0 and 1
       both run at `warmup_lr` and epoch e at f(e - 1); the cosine counts from epoch 0, warm-up included.
step:  the rate moves each step; the cosine starts at `lr` where warm-up ends, and reaches `min_lr` as the stage ends.

Without warm-up the rate starts at `lr`; a stage no longer than its warm-up ends inside it.
"""

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    steps_per_epoch: int,
    epochs: int,
    lr: float,
    min_lr: float,
    warmup_epochs: float,
    warmup_lr: float,
    schedule: Literal["epoch", "step"],
) -> float:
    if schedule == "epoch":
        time = max(step // steps_per_epoch - 1, 0)  # epochs
        cosine_start = 0.0
    else:
        time = step / steps_per_epoch
        cosine_start = warmup_epochs
    if time < warmup_epochs:
        return warmup_lr + (lr - warmup_lr) * time / warmup_epochs
    if time >= epochs:
        return min_lr
    progress = (time - cosine_start) / (epochs - cosine_start)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def of_stage(stage, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step of `stage`, a row of a recipe."""
    names = ("epochs", "lr", "min_lr", "warmup_epochs", "warmup_lr", "schedule")
    return learning_rate(step, steps_per_epoch=steps_per_epoch, **{name: getattr(stage, name) for name in names})
