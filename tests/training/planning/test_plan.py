"""Projected times, against a run that is played through step by step."""

import pytest

from config import schedule
from config.recipe import BASE_RECIPE, load_recipe
from training import datasets
from training.network import model
from training.planning import cost, estimate
from training.planning.plan import StagePlan, eta

PLANS = [StagePlan("a", 5, (10.0,) * 4, 100, 10, 3), StagePlan("b", 3, (9.0, 18.0, 27.0), 100, 10, 3)]


@pytest.mark.parametrize(("stage", "step"), [("a", 1), ("a", 5), ("a", 19), ("a", 20), ("b", 1), ("b", 4), ("b", 9)])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_what_is_left_is_what_a_played_run_takes(stage, step, window):
    """Each step takes its share of its epoch's work; 0.25 s for a unit of it. The speed is taken over `window` steps,
    also where the resolution changed among them, as it does within stage b."""
    steps = [
        (plan.stage, work / plan.steps_per_epoch)
        for plan in PLANS
        for work in plan.work
        for _ in range(plan.steps_per_epoch)
    ]
    first = [name for name, _ in steps].index(stage)
    at = first + step
    clock = [100 + 0.25 * sum(work for _, work in steps[:taken]) for taken in range(len(steps) + 1)]
    points = [(taken, clock[first + taken]) for taken in range(max(step - window, 0), step + 1)]
    left = eta(PLANS, stage, points)
    rest = steps[at:]
    assert left.run == pytest.approx(0.25 * sum(work for _, work in rest))
    assert left.stage == pytest.approx(0.25 * sum(work for name, work in rest if name == stage))
    assert left.done == pytest.approx(sum(work for _, work in steps[:at]) / sum(work for _, work in steps))


@pytest.mark.parametrize("points", [[], [(10, 100.0)], [(10, 100.0), (10, 101.0)], [(10, 100.0), (12, 90.0)]])
def test_where_the_points_tell_no_speed(points):
    """The last: a clock that was put back."""
    assert eta(PLANS, "a", points) is None


def test_a_plan_counts_images_times_multiply_adds():
    """FFCV's ResNet recipe, whose resolution rises: the work of an epoch goes with that of its images."""
    run = load_recipe(BASE_RECIPE.parent / "fast/rn50_ffcv_16ep.yaml", {"model.name": "test_resnet"})
    sets = datasets.planned_sets(run)
    (plan,) = estimate.training_plan(run, sets, 0)
    stage = run.stages[0]
    network = model.create("test_resnet", resolution=stage.resolution, classes=1000, drop_path=0.0, layer_scale=None,
                           blur_pool=run.model.blur_pool)  # fmt: skip
    sides = [schedule.resolution(stage, epoch) for epoch in range(16)]
    assert len(set(sides)) > 1
    gmacs = {side: cost.gmacs(network, side) for side in sides}
    assert plan.work == pytest.approx([plan.steps_per_epoch * stage.batch * gmacs[side] for side in sides], rel=1e-5)
    assert (plan.train_images, plan.classes, plan.steps_per_epoch) == (1_281_167, 1000, 1_281_167 // stage.batch)
