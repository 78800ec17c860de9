"""Which stages have a published curve, and how far a run is from it."""

import json

import pytest

from config.recipe import BASE_RECIPE, load_recipe
from training.planning import reference_curves
from training.planning.plan import StagePlan

RECIPES = BASE_RECIPE.parent
POINTS = json.loads((RECIPES / "official_curves.json").read_text())
ENDS = json.loads((RECIPES / "published.json").read_text())


def curves_of(cfg, val_images=50_000, **overrides):
    run = load_recipe(RECIPES / f"{cfg}.yaml", {f"stage.{key}": value for key, value in overrides.items()})
    plans = [StagePlan(stage.name, 10, (1.0,) * stage.epochs, 1000, val_images, 1000) for stage in run.stages]
    return reference_curves.reference_curves(run, plans)


@pytest.mark.parametrize("name", POINTS)
def test_every_published_recipe_has_its_own_curve(name):
    found = curves_of(name)
    assert set(found) == set(POINTS[name]) | set(ENDS.get(name, {}))
    for stage, curve in found.items():
        assert (curve.recipe, curve.changed) == (name, ())
        if stage in POINTS[name]:
            assert dict(zip(map(str, curve.epochs), curve.top1, strict=True)) == POINTS[name][stage]


@pytest.mark.parametrize("name", [name for name in ENDS if name not in POINTS])
def test_where_the_end_alone_was_published_the_end_is_compared(name):
    found = curves_of(name)
    assert set(found) == set(ENDS[name])
    for stage, curve in found.items():
        (epochs,) = (one.epochs for one in load_recipe(RECIPES / f"{name}.yaml").stages if one.name == stage)
        top1 = ENDS[name][stage]["top1"]
        assert (curve.recipe, curve.changed, curve.epochs, curve.top1) == (name, (), (epochs,), (top1,))
        assert reference_curves.deviation(curve, epochs - 1, 1.0) is None
        assert not reference_curves.deviation(curve, epochs, top1 - 2.1).on_track
        assert reference_curves.deviation(curve, epochs, top1 - 1.9).on_track


def test_other_data_schedules_and_models_have_none():
    assert curves_of("vit_s_800ep", val_images=403) == {}
    assert set(curves_of("vit_s_800ep", epochs="100")) == set()
    assert curves_of("vit_m_400ep") == {}


def test_what_differs_is_named():
    found = curves_of("vit_s_800ep", lr="1e-3", schedule="step", eval_crop="0.875")
    assert found["pretrain_224"].changed == ("lr", "schedule", "eval_crop")


def test_an_end_is_warned_of_at_the_end_alone():
    run = load_recipe(RECIPES / "fast/rn50_ffcv_16ep.yaml")
    monitor = reference_curves.CurveMonitor(run, [StagePlan("train", 10, (1.0,) * 16, 1000, 50_000, 1000)])
    assert monitor.departure({"stage": "train", "epoch": 15, "top1": 0.01}) is None
    assert "70.00 % after epoch 16, 3.80 points below the published 73.80 %" in monitor.departure(
        {"stage": "train", "epoch": 16, "top1": 0.70}
    )


@pytest.mark.parametrize(
    ("epoch", "top1", "difference", "margin", "on_track"),
    [
        (50, 53.0, -0.628, 2.2, True),  # the curve goes from 51.834 at 45 to 53.628 at 50 and 55.828 at 55
        (50, 51.0, -2.628, 2.2, False),
        (50, 60.0, 6.372, 2.2, True),
        (58, 55.0, -1.6032, 2.0, True),  # between points
        (10, 6.0, -3.258, 7.25, True),  # steep: 2.008, 9.258, 16.356
        (400, 72.5, -1.946, 2.0, True),
        (400, 72.4, -2.046, 2.0, False),
        (800, 81.4, 0.024, 2.0, True),
    ],
)
def test_the_margin_is_two_points_or_the_curves_own_steepness(epoch, top1, difference, margin, on_track):
    curve = curves_of("vit_s_800ep")["pretrain_224"]
    found = reference_curves.deviation(curve, epoch, top1)
    assert found.difference == pytest.approx(difference, abs=1e-9)
    assert found.margin == pytest.approx(margin)
    assert found.on_track == on_track
    how = "above" if difference >= 0 else "below"
    assert f"{abs(difference):.2f} points {how} the published" in found.describe()
