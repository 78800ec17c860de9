"""Recipes with a mistake, and recipes that do not fit the data or the GPUs."""

from pathlib import Path

from config.recipe import load_recipe
from tools.doctor.findings import FAULT, WARNING

ROOT = Path(__file__).resolve().parents[3]
VIT = str(ROOT / "recipes" / "vit_s_400ep.yaml")


def test_a_recipe_with_its_data(tmp_path, jpg_beton, torch_with, found, answers_of):
    """96 images and recipes for thousands: what the doctor proposes must then be accepted."""
    torch_with(gpus=3, cuda="13.2", nccl=True)
    answers_of({jpg_beton: {"samples": 96, "classes": 5}})
    text = Path(VIT).read_text().replace("data/imagenet_train.beton", str(jpg_beton))
    here = tmp_path / "vit.yaml"
    here.write_text(text.replace("base: base", f"base: {ROOT}/recipes/base"))
    (row,) = found("stage pretrain_224", [], str(here))
    assert row.state == FAULT and "2048 is more than 96 images" in row.found
    options = row.fix.partition(",")[0].split()
    overrides = dict(option.removeprefix("--").split("=") for option in options)
    assert load_recipe(VIT, overrides).stages[0].batch <= 96
    small = here.read_text().replace("stage: {eval_crop: 1.0}", "stage: {eval_crop: 1.0, batch: 16, mix_chunk: 16}")
    here.write_text(f"{small}  mixup: 0\n")
    rows = found("stage pretrain_224", [], str(here))
    assert rows[0].state == WARNING and rows[0].fix == "torchrun --nproc-per-node=2 ..."


def test_train_and_val_that_share_images(tmp_path, found, answers_of, jpg_beton, raw_beton):
    """What is said of the pair is said; where one file is refused by itself, that is enough."""
    pair = f"{jpg_beton}\n{raw_beton}"
    text = Path(VIT).read_text().replace("data/imagenet_train.beton", str(jpg_beton))
    here = tmp_path / "vit.yaml"
    here.write_text(
        text.replace("data/imagenet_val.beton", str(raw_beton)).replace("base: base", f"base: {ROOT}/recipes/base")
    )
    for answer, state in ({"remark": "3 of 9"}, WARNING), ({"refused": "9 of 9"}, FAULT):
        answers_of({jpg_beton: {"samples": 96}, raw_beton: {"samples": 96}, pair: answer})
        (row,) = found("train and val", [], str(here))
        assert (row.state, row.found) == (state, *answer.values())
    answers_of({jpg_beton: {"refused": "truncated"}, raw_beton: {"samples": 96}, pair: {"refused": "truncated"}})
    assert not found("train and val", [], str(here))


def test_a_recipe_that_is_wrong(tmp_path, found):
    (tmp_path / "x.yaml").write_text("stage: {epoch: 3}\n")
    (row,) = found("recipe", [], str(tmp_path / "x.yaml"))
    assert row.state == FAULT and "the nearest is 'epochs'" in row.found
