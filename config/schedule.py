"""What changes during a stage, as pure functions: the learning rate of a step and the resolution of an epoch.

In: a stage, a row of a recipe, and the step or epoch in it (0 is the first). Warm-up is linear; what follows it:

epoch: half a cosine, as the official loop does it: the rate stands still for an epoch and comes one epoch late. Epochs
       0 and 1 both run at `warmup_lr` and epoch e at f(e - 1); the cosine counts from epoch 0, warm-up included.
step:  the rate moves each step; the cosine starts at `lr` where warm-up ends, and reaches `min_lr` as the stage ends.
linear: the same with a straight line.

Without warm-up the rate starts at `lr`; a stage no longer than its warm-up ends inside it.
"""

import math
from collections import Counter


def learning_rate(stage, step: int, steps_per_epoch: int) -> float:
    if stage.schedule == "epoch":
        time = max(step // steps_per_epoch - 1, 0)  # epochs
        cosine_start = 0.0
    else:
        time = step / steps_per_epoch
        cosine_start = stage.warmup_epochs
    if time < stage.warmup_epochs:
        return stage.warmup_lr + (stage.lr - stage.warmup_lr) * time / stage.warmup_epochs
    if time >= stage.epochs:
        return stage.min_lr
    progress = (time - cosine_start) / (stage.epochs - cosine_start)
    left = 1 - progress if stage.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return stage.min_lr + (stage.lr - stage.min_lr) * left


RAMP_PIXELS = 32  # what ResNets halve to whole pixels five times, and two patches of 16


def resolution(stage, epoch: int) -> int:
    """Side of the training images of this epoch, pixels. `stage.ramp` (pixels, begins, ends): in between the nearest
    multiple of 32 to a straight line, of two equally near the one that is even times 32, as FFCV's recipes have it."""
    if stage.ramp is None or epoch >= stage.ramp[2]:
        return stage.resolution
    pixels, begins, ends = stage.ramp
    if epoch <= begins:
        return pixels
    line = pixels + (stage.resolution - pixels) * (epoch - begins) / (ends - begins)
    return round(line / RAMP_PIXELS) * RAMP_PIXELS


def resolutions(stage) -> dict[int, int]:
    """How many epochs of the stage are trained at each side, {pixels: epochs}."""
    return Counter(resolution(stage, epoch) for epoch in range(stage.epochs))
