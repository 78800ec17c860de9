"""Estimated speeds. References: the estimate in docs/performance.md, made of more parts than this one; the
results of the machine that was measured."""

import json
import re
from pathlib import Path

import pytest

from config import train_command
from config.recipe import load_recipe
from ffcv_ops import host
from ffcv_ops.errors import UserError
from training import datasets
from training.planning import estimate, roofline
from training.planning.model_costs import count, model_costs

ROOT = Path(__file__).resolve().parents[3]


def test_steps_are_those_of_the_longer_estimate():
    """Of S, B and L at 192 and 224 px, 256 images, on an H200."""
    page = (ROOT / "docs/performance.md").read_text()
    lines = re.findall(r"^\| ViT-([SBL])/16, (\d+) px ((?:\| [\d.]+ ){7})", page, re.MULTILINE)
    assert len(lines) == 6
    for size, side, parts in lines:
        recipe = load_recipe(ROOT / f"recipes/vit_{size.lower()}_800ep.yaml")
        costs = model_costs(recipe.model, int(side), 1000, drop_path=0.1)
        seconds = roofline.step_seconds(roofline.GPUS["h200"], costs, 256)
        assert 1000 * seconds == pytest.approx(float(parts.split("|")[-1]), rel=0.06)


def test_subset_computes_less_and_a_slower_gpu_takes_longer():
    stage = load_recipe(ROOT / "recipes/vit_l_800ep.yaml").stages[0]
    speeds = {}
    for mode in ("exact", "subset"):
        recipe = load_recipe(ROOT / "recipes/vit_l_800ep.yaml", {"speed.drop_path": mode})
        costs = model_costs(recipe.model, 192, 1000, drop_path=stage.drop_path)
        speeds[mode] = {gpu: roofline.images_per_s(gpu, recipe, stage, costs, 256) for gpu in roofline.GPUS}
    assert 1.5 < speeds["subset"]["h200"] / speeds["exact"]["h200"] < 1 / 0.55
    order = ["h200", "h100", "a100", "4090", "t4"]
    assert sorted(order, key=speeds["exact"].get, reverse=True) == order


def test_the_command_line_knows_the_devices():
    assert (*roofline.GPUS, "cpu") == train_command.DEVICES


def shown(name, on, **more):
    """The first row of the table after the recipe, by column, and all lines."""
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml")
    lines = estimate.describe(recipe, datasets.planned_sets(recipe), on=on, **more).splitlines()
    heads = re.split(r"  +", lines[0].removeprefix("#").strip())
    return dict(zip(heads, re.split(r"  +", lines[1].removeprefix("#").strip()), strict=True)), lines


def test_hours_and_euros_of_a_ramp_are_those_of_its_sizes():
    row, lines = shown("fast/vit_s_90ep", "h200")
    recipe = load_recipe(ROOT / "recipes/fast/vit_s_90ep.yaml")
    (stage,), seconds = recipe.stages, 0.0
    for epoch in range(90):
        side = estimate.schedule.resolution(stage, epoch)
        costs = model_costs(recipe.model, side, 1000, drop_path=0.0)
        seconds += 1251 * 1024 / roofline.images_per_s("h200", recipe, stage, costs, 256)
    assert float(row["GPU-hours"]) == pytest.approx(seconds / 3600, rel=0.04)
    assert float(row["euros"]) == pytest.approx(4 * seconds / 3600, abs=1)
    assert float(row["ms/step"]) == pytest.approx(1024 / float(row["images/s"].replace(",", "")) * 1000, rel=1e-3)
    assert any("estimated (see training/planning/roofline.py); 4 euros per hour" in line for line in lines)


def test_cores_for_the_loader_are_counted_and_too_few_are_said(monkeypatch):
    measured = {(row["task"], row["name"]): row["value"] for row in results("loader.json")["rows"]}
    row, _ = shown("fast/vit_s_90ep", "h200")
    speed = float(row["images/s"].replace(",", ""))
    needed = speed / (measured["B", "ours"] / 2)
    for cores, few in ((1, True), (64, False)):
        monkeypatch.setattr(host, "usable_cores", lambda cores=cores: cores)
        (line,) = (line for line in shown("fast/vit_s_90ep", "h200")[1] if "cores to load" in line)
        assert needed <= int(re.search(r"about (\d+) cores", line)[1]) <= needed + 1
        assert ("this machine has 1, and would wait for data" in line) == few


def results(name):
    return json.loads((ROOT / "bench/results" / name).read_text())


@pytest.fixture
def measured_cpu(monkeypatch):
    """This machine is taken for the one of the step's results: what they say, by task and contender."""
    found = results("step.json")
    monkeypatch.setattr(host, "processor", lambda: found["machine"]["cpu"])
    monkeypatch.setattr(host, "usable_cores", lambda: found["machine"]["cores"])
    return {(row["task"], row["name"]): row["value"] for row in found["rows"]}


def speed_on_cpu(name, px, samples):
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml")
    stage = recipe.stages[0]
    return roofline.images_per_s("cpu", recipe, stage, costs_of(recipe, px), samples)


def costs_of(recipe, px):
    return model_costs(recipe.model, px, 1000, drop_path=recipe.stages[0].drop_path)


def test_a_cpu_is_as_fast_as_it_was_measured(measured_cpu):
    """ViT-S at 112 px and batch 16 itself: the sum of its measured parts."""
    parts = sum(measured_cpu[f"S112 {part}", "exact"] for part in ("forward", "backward", "optimizer"))
    assert speed_on_cpu("vit_s_800ep", 112, 16) == pytest.approx(16 / (parts / 1000), rel=1e-6)


def test_what_a_cpu_was_not_measured_on_goes_by_three_terms(measured_cpu):
    """More weights cost more update; a larger batch pays it once; products take their due."""
    costs = costs_of(load_recipe(ROOT / "recipes/vit_b_400ep.yaml"), 224)
    update = measured_cpu["S112 optimizer", "exact"] / 1000 / roofline.SMALL.parameters * costs.parameters
    few, many = (samples / speed_on_cpu("vit_b_400ep", 224, samples) for samples in (8, 64))
    assert 8 * few - many == pytest.approx(7 * update, rel=1e-6)
    products = 6 * costs.macs / (measured_cpu["S112 ceiling", "matmul"] * 1e12)
    assert products < (many - update) / 64 < 2 * products


def test_the_costs_of_what_a_cpu_was_measured_on():
    recipe = load_recipe(ROOT / "recipes/vit_s_800ep.yaml")
    assert count(recipe.model, 112, 1000, drop_path=0.05) == roofline.SMALL


def test_an_unmeasured_cpu_is_said(measured_cpu, monkeypatch):
    cores = host.usable_cores() + 1
    monkeypatch.setattr(host, "usable_cores", lambda: cores)
    with pytest.raises(UserError, match=r"is of this machine.*first run python -m bench.step --tasks=S112"):
        speed_on_cpu("vit_s_800ep", 112, 16)


def test_what_was_measured_stands_beside_the_estimate():
    _, lines = shown("fast/vit_s_90ep", "h200", images_per_s=[7000.0])
    (line,) = (line for line in lines if "given or measured" in line)
    estimated, ratio = re.search(r"estimated ([\d,]+) .* ([\d.]+) times", line).groups()
    assert float(ratio) == pytest.approx(7000 / float(estimated.replace(",", "")), abs=0.006)
