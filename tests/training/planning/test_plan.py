"""Projected times, against a run that is played through step by step."""

import pytest

from config import schedule
from config.recipe import BASE_RECIPE, load_recipe
from training import datasets
from training.network import model
from training.planning import cost, estimate
from training.planning.plan import StagePlan, eta, seconds_per_step

PLANS = [StagePlan("a", 5, (10.0,) * 4, 100, 10, 3), StagePlan("b", 3, (9.0, 18.0, 27.0), 100, 10, 3)]


@pytest.mark.parametrize(("stage", "step"), [("a", 1), ("a", 5), ("a", 19), ("a", 20), ("b", 1), ("b", 4), ("b", 9)])
def test_what_is_left_is_what_a_played_run_takes(stage, step):
    """Each step takes its share of its epoch's work; 0.25 s for a unit of it."""
    steps = [
        (plan.stage, work / plan.steps_per_epoch)
        for plan in PLANS
        for work in plan.work
        for _ in range(plan.steps_per_epoch)
    ]
    first = [name for name, _ in steps].index(stage)
    at = first + step
    now = steps[min(at, first + sum(name == stage for name, _ in steps) - 1)][1]
    left = eta(PLANS, stage, step, seconds_per_step=0.25 * now)
    rest = steps[at:]
    assert left.run == pytest.approx(0.25 * sum(work for _, work in rest))
    assert left.stage == pytest.approx(0.25 * sum(work for name, work in rest if name == stage))
    assert left.done == pytest.approx(sum(work for _, work in steps[:at]) / sum(work for _, work in steps))


def test_the_speed_is_that_of_the_points():
    assert seconds_per_step([(10, 100.0), (12, 101.0), (20, 130.0)]) == 3.0
    assert seconds_per_step([(10, 100.0)]) is None
    assert seconds_per_step([(10, 100.0), (10, 101.0)]) is None
    assert seconds_per_step([]) is None
    assert seconds_per_step([(10, 100.0), (12, 90.0)]) is None, "a clock that was put back"


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
