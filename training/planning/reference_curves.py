"""Is a run on track? Its top-1 beside what was published of the same recipe, after as many epochs.

In: a recipe and its plan; recipes/official_curves.json, and recipes/published.json, which knows the end alone. Out: the
stages that have such a curve, and how far a value is from it. A stage has one when it and those before it are called as
in a published recipe, train the same model for as many epochs, and it is evaluated on as many images as ImageNet's
validation set has. Any other key of the stage that differs is named, not hidden.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from config.recipe import BASE_RECIPE, Recipe, StageConfig, load_recipe
from training.planning.plan import StagePlan

CURVES, ENDS = BASE_RECIPE.with_name("official_curves.json"), BASE_RECIPE.with_name("published.json")
VAL_IMAGES = 50_000
MARGIN = 2.0  # points of top-1 that a run may be away from the curve
AROUND = 5  # epochs within which the curve's own steepness widens the margin


class ReferenceCurve(NamedTuple):
    """The published curve of a stage; a single point where only its end was published."""

    recipe: str
    epochs: tuple[int, ...]
    top1: tuple[float, ...]  # percent
    changed: tuple[str, ...]  # keys of the stage in which the run differs from that recipe


class Deviation(NamedTuple):
    """A value beside the curve, in points of top-1."""

    epoch: int
    top1: float
    reference: float
    margin: float

    @property
    def difference(self) -> float:
        return self.top1 - self.reference

    @property
    def on_track(self) -> bool:
        """Better than the curve is on track too."""
        return self.difference >= -self.margin

    def describe(self) -> str:
        """One sentence without its subject."""
        how = "above" if self.difference >= 0 else "below"
        within = "within" if abs(self.difference) <= self.margin else "more than"
        return (
            f"{self.top1:.2f} % after epoch {self.epoch}, {abs(self.difference):.2f} points {how} the published"
            f" {self.reference:.2f} % ({within} the margin of {self.margin:.1f})"
        )


def reference_curves(recipe: Recipe, plans: Sequence[StagePlan]) -> dict[str, ReferenceCurve]:
    """The published curve of each planned stage that has one, by the stage's name."""
    sizes = {plan.stage: plan.val_images for plan in plans}
    found = {}
    for number, stage in enumerate(recipe.stages):
        if sizes.get(stage.name) == VAL_IMAGES:
            alike = [
                curve._replace(changed=_changed(stage, theirs))
                for path, theirs, curve in _published()
                if path == _path_to(recipe, number)
            ]
            if alike:
                found[stage.name] = min(alike, key=lambda curve: len(curve.changed))
    return found


def deviation(curve: ReferenceCurve, epoch: int, top1: float) -> Deviation | None:
    """`top1` in percent after `epoch` epochs of the stage; None before the curve begins. The margin is MARGIN, or what
    the curve moves within AROUND epochs, where that is more: in its steep part an epoch more or less is no fault."""
    if epoch < curve.epochs[0]:
        return None

    def at(when):
        return float(np.interp(when, curve.epochs, curve.top1))

    steepness = max(abs(at(epoch + AROUND) - at(epoch)), abs(at(epoch) - at(epoch - AROUND)))
    return Deviation(epoch, top1, at(epoch), max(MARGIN, steepness))


def _changed(stage: StageConfig, theirs: StageConfig) -> tuple[str, ...]:
    names = [field.name for field in dataclasses.fields(StageConfig)]
    return tuple(name for name in names if getattr(stage, name) != getattr(theirs, name))


def _path_to(recipe: Recipe, number: int) -> tuple:
    """How a run came to its stage of that number."""
    return (recipe.model.name, *((stage.name, stage.epochs) for stage in recipe.stages[: number + 1]))


@functools.cache
def _published() -> tuple[tuple[tuple, StageConfig, ReferenceCurve], ...]:
    """(how a run comes to the stage, the stage, its curve) of all that have one."""
    curves, ends = (json.loads(path.read_text(encoding="utf-8")) for path in (CURVES, ENDS))
    found = []
    for name in curves | ends:
        recipe = load_recipe(CURVES.parent / f"{name}.yaml")
        for number, stage in enumerate(recipe.stages):
            points = curves.get(name, {}).get(stage.name, {})
            if not points and stage.name in ends.get(name, {}):
                points = {stage.epochs: ends[name][stage.name]["top1"]}
            if points:
                points = sorted((int(epoch), top1) for epoch, top1 in points.items())
                curve = ReferenceCurve(name, *zip(*points, strict=True), ())
                found.append((_path_to(recipe, number), stage, curve))
    return tuple(found)


class CurveMonitor:
    """Notices when a run leaves the published curve of its recipe."""

    def __init__(self, recipe: Recipe, plans: Sequence[StagePlan]):
        self.curves = reference_curves(recipe, plans)
        self.off_track = set()

    def departure(self, row: dict) -> str | None:
        """What to warn of after this row of the log: once when a stage falls behind, again only after it was back."""
        stage = row["stage"]
        if stage not in self.curves or "top1" not in row:
            return None
        found = deviation(self.curves[stage], row["epoch"], 100 * row["top1"])
        if found is None:
            return None
        was_off = stage in self.off_track
        (self.off_track.discard if found.on_track else self.off_track.add)(stage)
        if found.on_track or was_off:
            return None
        return f"stage {stage} is off the curve of {self.curves[stage].recipe}: {found.describe()}"
