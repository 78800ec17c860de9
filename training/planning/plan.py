"""The plan of a run, written when it begins (plan.json), and how long what is left of it takes.

For each stage the plan holds the steps of an epoch and the multiply-adds of an image. By the latter the speed of the
stage under way is carried over to those that follow.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.logging.records import read_json


class StagePlan(NamedTuple):
    """A stage as planned. `work`: of each epoch, its images times the multiply-adds (10^9) of one."""

    stage: str
    steps_per_epoch: int
    work: tuple[float, ...]
    train_images: int
    val_images: int
    classes: int

    @property
    def steps(self) -> int:
        """Of all its epochs."""
        return self.steps_per_epoch * len(self.work)


class Eta(NamedTuple):
    """Seconds that remain, and the share of the run's work that is done."""

    stage: float
    run: float
    done: float


def seconds_per_step(points: Sequence[tuple[int, float]]) -> float | None:
    """Of (step, seconds spent) at log points of one stage, evaluation and all; None where they do not tell."""
    if len(points) < 2:
        return None
    steps, seconds = (last - first for first, last in zip(points[0], points[-1], strict=True))
    return seconds / steps if steps > 0 and seconds > 0 else None


def eta(plans: Sequence[StagePlan], stage: str, step: int, seconds_per_step: float) -> Eta:
    """What remains after `step` steps of `stage`, at that many seconds for each of its steps at the current epoch's
    resolution."""
    number = [plan.stage for plan in plans].index(stage)
    plan = plans[number]
    epoch = min(step // plan.steps_per_epoch, len(plan.work) - 1)
    seconds_per_work = seconds_per_step * plan.steps_per_epoch / plan.work[epoch]
    finished = sum(plan.work[:epoch]) + plan.work[epoch] * (step / plan.steps_per_epoch - epoch)
    before, after = (sum(sum(other.work) for other in some) for some in (plans[:number], plans[number + 1 :]))
    of_stage = sum(plan.work) - finished
    share = (before + finished) / (before + sum(plan.work) + after)
    return Eta(of_stage * seconds_per_work, (of_stage + after) * seconds_per_work, share)


def read_plan(path: Path) -> list[StagePlan]:
    """What was written to plan.json; [] where there is none, or it is damaged."""
    content = read_json(path)
    try:
        plans = [StagePlan(**{name: row[name] for name in StagePlan._fields}) for row in content]
    except (TypeError, LookupError):
        return []
    return [plan._replace(work=tuple(plan.work)) for plan in plans] if all(map(_is_sound, plans)) else []


def _is_sound(plan):
    counts = (plan.steps_per_epoch, plan.train_images, plan.val_images, plan.classes)
    return (
        isinstance(plan.stage, str)
        and all(type(count) is int and 0 < count < 2**53 for count in counts)
        and isinstance(plan.work, list)
        and len(plan.work) > 0
        and all(type(work) is float and 0 < work < math.inf for work in plan.work)
    )
