"""Is a run on track? Its top-1 beside the official log of the same recipe, after as many epochs.

In: a run and its plan; recipes/official_curves.json. Out: the stages that have an official curve, and how far a value
is from it. A stage has one when it and those before it are called as in a published recipe, train the same model for as
many epochs, and it is evaluated on as many images as ImageNet's validation set has; any other key of the stage that
differs is named, not hidden.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from config.recipe import BASE_RECIPE, Recipe, StageConfig, load_recipe
from training.progress import Part

CURVES = BASE_RECIPE.parent / "official_curves.json"
VAL_IMAGES = 50_000
MARGIN = 2.0  # points of top-1 that a run may be away from the curve
AROUND = 5  # epochs within which the curve's own steepness widens the margin


class Course(NamedTuple):
    """The official curve of a stage."""

    recipe: str
    epochs: tuple[int, ...]
    top1: tuple[float, ...]  # percent
    changed: tuple[str, ...]  # keys of the stage in which the run differs from that recipe


class Standing(NamedTuple):
    """A value beside the curve, in points of top-1."""

    epoch: int
    ours: float
    official: float
    margin: float

    @property
    def difference(self) -> float:
        return self.ours - self.official

    @property
    def on_track(self) -> bool:
        """Better than the curve is on track too."""
        return self.difference >= -self.margin

    def words(self) -> str:
        """One sentence without its subject."""
        how = "above" if self.difference >= 0 else "below"
        within = "within" if abs(self.difference) <= self.margin else "more than"
        return (
            f"{self.ours:.2f} % after epoch {self.epoch}, {abs(self.difference):.2f} points {how} the official"
            f" {self.official:.2f} % ({within} the margin of {self.margin:.1f})"
        )


def courses(recipe: Recipe, parts: Sequence[Part]) -> dict[str, Course]:
    """The official curve of each planned stage that has one, by the stage's name."""
    sizes = {part.stage: part.val_images for part in parts}
    found = {}
    for number, stage in enumerate(recipe.stages):
        if sizes.get(stage.name) == VAL_IMAGES:
            alike = [
                course._replace(changed=_changed(stage, theirs))
                for way, theirs, course in _published()
                if way == _way(recipe, number)
            ]
            if alike:
                found[stage.name] = min(alike, key=lambda course: len(course.changed))
    return found


def standing(course: Course, epoch: int, top1: float) -> Standing:
    """`top1` in percent after `epoch` epochs of the stage. The margin is MARGIN, or what the curve moves within AROUND
    epochs, where that is more: in its steep part an epoch more or less is no fault."""

    def at(when):
        return float(np.interp(when, course.epochs, course.top1))

    steepness = max(abs(at(epoch + AROUND) - at(epoch)), abs(at(epoch) - at(epoch - AROUND)))
    return Standing(epoch, top1, at(epoch), max(MARGIN, steepness))


def _changed(stage: StageConfig, theirs: StageConfig) -> tuple[str, ...]:
    names = [field.name for field in dataclasses.fields(StageConfig)]
    return tuple(name for name in names if getattr(stage, name) != getattr(theirs, name))


def _way(recipe: Recipe, number: int) -> tuple:
    """How a run came to its stage of that number."""
    return (recipe.model.name, *((stage.name, stage.epochs) for stage in recipe.stages[: number + 1]))


@functools.cache
def _published() -> tuple[tuple[tuple, StageConfig, Course], ...]:
    """(way, stage, its curve) of all that have one."""
    found = []
    for name, stages in json.loads(CURVES.read_text(encoding="utf-8")).items():
        recipe = load_recipe(CURVES.with_name(f"{name}.yaml"))
        for number, stage in enumerate(recipe.stages):
            if stage.name in stages:
                points = sorted((int(epoch), top1) for epoch, top1 in stages[stage.name].items())
                found.append((_way(recipe, number), stage, Course(name, *zip(*points, strict=True), ())))
    return tuple(found)
