"""How far a run is and how long it will take: pure functions of its plan and of the speed so far.

The plan is written when a run begins (plan.json): for each stage the steps of an epoch and the multiply-adds of an
image, by which the speed of the stage under way is carried over to those that follow.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from config.schema import ModelConfig, Recipe
from training import model, schedule, summary
from training.datasets import DataSet


class Part(NamedTuple):
    """A stage as planned. `work`: of each epoch, its images times the multiply-adds (10^9) of one."""

    stage: str
    steps: int  # in an epoch
    work: tuple[float, ...]
    train_images: int
    val_images: int
    classes: int


def plan(recipe: Recipe, sets: dict[str, DataSet], first: int) -> list[Part]:
    """Of the stages from number `first` on."""
    parts = []
    for stage in recipe.stages[first:]:
        data = sets[stage.data]
        macs = _macs(recipe.model, stage.resolution, data.classes, stage.drop_path)
        steps = summary.length(stage, sets)[0] // stage.epochs
        sides = (schedule.resolution(stage, epoch) / stage.resolution for epoch in range(stage.epochs))
        work = tuple(round(steps * stage.batch * macs * side**2, 6) for side in sides)
        parts.append(Part(stage.name, steps, work, data.train.samples, data.val.samples, data.classes))
    return parts


@functools.cache
def _macs(of_model: ModelConfig, resolution: int, classes: int, drop_path: float) -> float:
    """Multiply-adds (10^9) of an image. They take 0.3 s to count, and stages and runs of one process share them."""
    return model.macs(summary.on_shapes(of_model, resolution, classes, drop_path=drop_path), resolution)


def pace(points: Sequence[tuple[int, float]]) -> float | None:
    """Seconds of a step, evaluation and all, from (step, seconds spent) of one stage; None for fewer than two steps."""
    if not points or points[-1][0] <= points[0][0]:
        return None
    return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


class Left(NamedTuple):
    """Seconds that remain, and the share of the run's work that is done."""

    stage: float
    run: float
    done: float


def left(parts: Sequence[Part], stage: str, step: int, seconds_per_step: float) -> Left:
    """What remains after `step` steps of `stage`, at that many seconds for each of its steps at the current epoch's
    resolution."""
    number = [part.stage for part in parts].index(stage)
    part = parts[number]
    epoch = min(step // part.steps, len(part.work) - 1)
    seconds_per_work = seconds_per_step * part.steps / part.work[epoch]
    finished = sum(part.work[:epoch]) + part.work[epoch] * (step - epoch * part.steps) / part.steps
    before, after = (sum(sum(other.work) for other in some) for some in (parts[:number], parts[number + 1 :]))
    of_stage = sum(part.work) - finished
    share = (before + finished) / (before + sum(part.work) + after)
    return Left(of_stage * seconds_per_work, (of_stage + after) * seconds_per_work, share)


def words(seconds: float) -> str:
    """A time in two units: 40 s, 3 min 20 s, 5 h 10 min, 3 d 4 h."""
    seconds = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (unit, size), (smaller, part) in itertools.pairwise(units):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"


def read(rows: Iterable[dict]) -> list[Part]:
    """The parts as they were written to plan.json."""
    return [Part(**{name: row[name] for name in Part._fields}) for row in rows]
