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

    def finished(self, step: int) -> float:
        """The work of its first `step` steps."""
        epoch = min(step // self.steps_per_epoch, len(self.work) - 1)
        return sum(self.work[:epoch]) + self.work[epoch] * (step / self.steps_per_epoch - epoch)


class Eta(NamedTuple):
    """Seconds that remain, and the share of the run's work that is done."""

    stage: float
    run: float
    done: float


def eta(plans: Sequence[StagePlan], stage: str, points: Sequence[tuple[int, float]]) -> Eta | None:
    """What remains after the last of `points`, at the speed between the first and the last: (step, seconds spent) at
    log points of `stage`, evaluation and all. None where they do not tell a speed."""
    if len(points) < 2:
        return None
    number = [plan.stage for plan in plans].index(stage)
    (first, began), (last, ended) = points[0], points[-1]
    finished = plans[number].finished(last)
    work, seconds = finished - plans[number].finished(first), ended - began
    if work <= 0 or seconds <= 0:
        return None
    works = [sum(plan.work) for plan in plans]
    left, after = works[number] - finished, sum(works[number + 1 :])
    done = 1 - (left + after) / sum(works)
    return Eta(left * seconds / work, (left + after) * seconds / work, done)


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
