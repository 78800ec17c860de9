"""Cells differ in the allowed keys only, and what would break that is refused."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pytest

from config import schedule
from ffcv_ops.errors import UserError
from rn_vs_vit import grid
from training.planning.model_costs import model_costs

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("precision", "fast", "fast_longer")  # ask other questions
PRECISION, FAST, LONGER = (ROOT / "rn_vs_vit" / f"{name}.yaml" for name in OTHERS)
GRIDS = sorted({*(ROOT / "rn_vs_vit").glob("*.yaml")} - {PRECISION, FAST, LONGER})

SMALL = """
recipe: {recipe}
fixed: {{stage.epochs: 2, stage.warmup_epochs: 0}}
axes:
  network:
    a: {{model.name: deit3_micro_patch16_224, stage.lr: 1.0e-3}}
    b: {{model.name: test_resnet}}
  augmentation:
    three: {{stage.augment: three}}
    none: {{stage.augment: none, stage.jitter: none}}
seeds: [3, 4]
"""


def flat(run):
    """{"stage.lr": ..., ...} of a run of one stage."""
    (stage,) = run.stages
    values = {name: getattr(run, name) for name in ("seed", "on_nonfinite", "nonfinite_in_a_row", "watchdog")}
    for name, part in (("stage", stage), *((n, getattr(run, n)) for n in ("data", "model", "speed", "log"))):
        values |= {f"{name}.{key}": value for key, value in dataclasses.asdict(part).items()}
    return values


def differing(one, other):
    one, other = flat(one.run), flat(other.run)
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_cells_differ_in_the_allowed_keys_only(path):
    """Written out once more by hand: what an augmentation is, what a network is."""
    augmentation = {"stage.augment", "stage.jitter", "stage.erasing", "stage.erasing_mode"}
    network = {"model.name", "model.layer_scale", "model.blur_pool", "stage.lr", "stage.weight_decay",
               "stage.drop_path"}  # fmt: skip
    cells = grid.read(path).cells
    assert len(cells) == len({cell.folder for cell in cells}) == len({cell[:3] for cell in cells})
    for one, other in itertools.combinations(cells, 2):
        allowed = {"log.name"}
        allowed |= augmentation if one.choice != other.choice else set()
        allowed |= network if one.row != other.row else set()
        allowed |= {"seed"} if one.seed != other.seed else set()
        found = differing(one, other)
        assert found <= allowed, (one.run.log.name, other.run.log.name)
        assert ("seed" in found) == (one.seed != other.seed)
        assert bool(found & augmentation) == (one.choice != other.choice)
        assert ("model.name" in found) == (one.row != other.row)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_ask_the_papers_question(path):
    wanted = grid.read(path)
    assert wanted.choices[0] == "3-Augment"
    assert {"RandAugment", "AutoAugment", "none"} <= set(wanted.choices)
    assert len(wanted.seeds) >= 3
    first = wanted.cells[0].run.stages[0]
    assert (first.augment, first.jitter) == ("three(ops=gray+solarize+blur)", 0.3)


def test_the_grid_of_precisions_differs_in_them_alone():
    cells = grid.read(PRECISION).cells
    assert len(cells) == 10
    recipes = [dataclasses.replace(cell.run, seed=0, log=None, speed=None) for cell in cells]
    assert all(recipe == recipes[0] for recipe in recipes)
    speeds = [dataclasses.replace(cell.run.speed, precision="auto") for cell in cells]
    assert all(speed == speeds[0] for speed in speeds)
    assert {(cell.run.seed, cell.run.speed.precision) for cell in cells} == set(
        itertools.product(range(5), ("fp32", "bf16"))
    )


def test_the_grid_of_fast_ways_spends_the_same_epochs_at_the_same_sizes():
    """All but two see as many images at each size; `full_as_long` costs the multiply-adds of the ramp."""
    wanted = grid.read(FAST)
    assert (len(wanted.cells), wanted.choices[0]) == (35, "ramp")
    runs = {cell.choice: cell.run for cell in wanted.cells if cell.seed == 0}
    sizes = {way: sum((schedule.resolutions(stage) for stage in run.stages), Counter()) for way, run in runs.items()}
    assert sizes.pop("full") == {96: 16}
    epochs = sizes.pop("full_as_long")[96]
    assert all(size == sizes["ramp"] == {48: 8, 64: 4, 96: 4} for size in sizes.values())
    macs = {side: model_costs(runs["ramp"].model, side, 15, drop_path=0.2).macs for side in (48, 64, 96)}
    assert abs(epochs - sum(sizes["ramp"][side] * macs[side] for side in macs) / macs[96]) < 1
    same = [dataclasses.replace(runs[way], speed=None, log=None) for way in ("ramp", "subset")]
    assert same[0] == same[1] and runs["subset"].speed.drop_path == "subset"


def test_the_longer_ramp_is_the_ramp_stretched_and_full_is_that_of_the_study():
    long, study = (
        {cell.choice: cell.run for cell in grid.read(path).cells if cell.seed == 0} for path in (LONGER, FAST)
    )
    assert list(long) == ["ramp_24", "full"]
    assert schedule.resolutions(long["ramp_24"].stages[0]) == {48: 12, 64: 6, 96: 6}
    assert dataclasses.replace(long["full"], log=None) == dataclasses.replace(study["full"], log=None)
    (stage,), (wanted,) = long["ramp_24"].stages, study["ramp"].stages
    assert dataclasses.replace(stage, epochs=16, ramp=wanted.ramp) == wanted


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "g.yaml"
        path.write_text(text.format(recipe=ROOT / "recipes" / "base.yaml"))
        return path

    return write


def test_seeds_come_one_after_the_other_and_overrides_reach_every_cell(write):
    wanted = grid.read(write(SMALL), {"data.train": "mine.beton", "stage.batch": "512", "log.out": "there"})
    assert [cell[:3] for cell in wanted.cells] == [
        (net, augment, seed) for seed in (3, 4) for net in "ab" for augment in ("three", "none")
    ]
    assert {(cell.run.data.train, cell.run.stages[0].batch) for cell in wanted.cells} == {("mine.beton", 512)}
    assert wanted.cells[0].folder == Path("there/g/a_three_3")
    assert [cell.run.stages[0].lr for cell in wanted.cells[:4]] == [1e-3, 1e-3, 3e-3, 3e-3]


SWEEP = """
recipe: {recipe}
axes:
  stage.freeze: [none, backbone]
  fold:
    0: {{data.train: f0_train.beton, data.val: f0_val.beton}}
    1: {{data.train: f1_train.beton, data.val: f1_val.beton}}
  stage.rrc_scale: [[0.08, 1.0], [0.35, 1.0]]
seeds: [0]
"""


def test_any_keys_of_a_recipe_are_axes_and_a_list_is_an_axis_of_its_key(write):
    wanted = grid.read(write(SWEEP))
    assert wanted.axes == ("stage.freeze, fold", "stage.rrc_scale")
    assert wanted.rows == ("none, 0", "none, 1", "backbone, 0", "backbone, 1")
    assert wanted.choices == ("0.08-1.0", "0.35-1.0")
    assert [(cell.run.stages[0].freeze, cell.run.data.val, cell.run.stages[0].rrc_scale) for cell in wanted.cells] == [
        (freeze, f"f{fold}_val.beton", (low, 1.0))
        for freeze in (None, "backbone") for fold in (0, 1) for low in (0.08, 0.35)
    ]  # fmt: skip
    assert wanted.cells[-1].run.log.name == "backbone_1_0.35-1.0_0"


def test_the_grid_in_the_readme_is_one(tmp_path):
    text = (ROOT / "rn_vs_vit" / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "probe.yaml"
    path.write_text(text.replace("recipe: ", f"recipe: {ROOT}/"))
    wanted = grid.read(path)
    assert (len(wanted.cells), wanted.axes[1], wanted.cells[0].run.log.name) == (16, "how", "a_5.0e-5_whole_0")


def test_one_axis_is_a_row_of_the_recipe(write):
    wanted = grid.read(write("recipe: {recipe}\naxes: {{stage.lr: [1.0e-3, 2.0e-3]}}\nseeds: [0]\n"))
    assert (wanted.axes, wanted.rows) == (("recipe", "stage.lr"), ("base",))
    assert [cell.run.stages[0].lr for cell in wanted.cells] == [1e-3, 2e-3]


def test_what_auto_stands_for_comes_with_the_weights(write):
    known = {"model": {"mean": (0.5, 0.5, 0.5)}}
    assert {cell.run.model.mean for cell in grid.read(write(SMALL), {}, known).cells} == {(0.5, 0.5, 0.5)}


BAD = {
    "{{}}": "a grid needs recipe:",
    SMALL + "seed: 3\n": "'seed' is no part of a grid; the nearest is 'seeds'",
    SMALL.replace("stage.jitter", "stage.lr"): "augmentation: stage.lr is set by the axis network already",
    SMALL.replace("stage.lr", "seed"): "network: seed is set by the grid itself already",
    SMALL.replace("stage.epochs", "seed"): "seed is what cells differ in",
    SMALL.replace("stage.epochs", "stage.epoch"): "stage.epoch is not a key",
    SMALL.replace("stage.lr", "lr"): "--lr is not a key",
    SMALL.replace("[3, 4]", "[3, 3]"): "a seed appears twice",
    SMALL.replace("[3, 4]", "[3, x]"): "seeds must be a list of whole numbers",
    SMALL.replace("a: {{model", "a/b: {{model"): "becomes part of a path",
    SMALL.replace("three: {{stage.augment: three}}", "three: three"): "three must hold keys",
    SWEEP.replace("[none, backbone]", "[none, none]"): "stage.freeze: a value appears twice",
    SWEEP.replace("[none, backbone]", "[]"): "stage.freeze is empty",
    "recipe: {recipe}\naxes: {{}}\nseeds: [0]": "axes is empty",
    "recipe: [{recipe}]\naxes: {{}}\nseeds: [0]": "recipe must be the name of a file",
}


@pytest.mark.parametrize(("text", "complaint"), BAD.items(), ids=BAD.values())
def test_what_would_not_be_fair_is_refused(text, complaint, write):
    with pytest.raises(UserError, match=complaint.replace("(", r"\(")):
        grid.read(write(text))


def test_the_command_line_cannot_set_what_cells_differ_in(write):
    for name in ("seed", "stage.augment", "stage.lr", "log.name"):
        with pytest.raises(UserError, match=f"{name} is what cells differ in"):
            grid.read(write(SMALL), {name: "1"})
