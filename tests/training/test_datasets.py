"""Which files a stage reads, and how many classes its head has."""

import json
from pathlib import Path

import pytest

from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from training import datasets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, jpg_beton, raw_beton):
    """Two data sets: 8 classes by the sidecar of the first, 5 by the labels of the second."""
    (tmp_path / "big.beton").symlink_to(jpg_beton)
    (tmp_path / "big.json").write_text(json.dumps({"classes": list("abcdefgh")}))
    files = {"data.train": tmp_path / "big.beton", "data.val": jpg_beton,
             "data.finetune_train": raw_beton, "data.finetune_val": jpg_beton}  # fmt: skip

    def load(**changes):
        overrides = {key: str(path) for key, path in files.items()} | changes
        return load_recipe(ROOT / "recipes/in21k_s_90ep.yaml", overrides)

    return load


def test_each_word_has_its_files_and_classes(run, jpg_beton, raw_beton):
    sets = datasets.open_sets(run())
    assert list(sets) == ["main", "finetune"]
    assert (sets["main"].classes, sets["finetune"].classes) == (8, 5)
    assert sets["main"].train.class_names == tuple("abcdefgh")
    assert (sets["finetune"].train.path, sets["finetune"].val.path) == (raw_beton, jpg_beton)
    assert sets["main"].train.samples == 96


def test_what_is_odd_is_said_before_a_run(run, tmp_path, raw_beton):
    (tmp_path / "big.json").write_text(json.dumps({"classes": list("abcdefghijk")}))
    said = list(datasets.remarks(datasets.open_sets(run())))
    assert said[-1] == f"{tmp_path / 'big.beton'}: 6 of 11 classes have no images"
    assert f"{raw_beton}: no checksums lie beside it (x.json, x.xxh64), so damaged" in said[2]
    assert len(said) == 4


@pytest.mark.parametrize(
    "name, message",
    [("a" * 300, "no such file; write it"), ("x\0y", "no such file; write it"), ("link", "is a link to nowhere")],
)
def test_names_of_no_file_are_told_in_a_line(run, tmp_path, name, message):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=message):
        datasets.open_sets(run(**{"data.train": str(tmp_path / name)}))


def test_only_the_stages_that_will_run_need_their_files(run):
    missing = run(**{"data.train": "nothing.beton"})
    assert list(datasets.open_sets(missing, first=1)) == ["finetune"]
    with pytest.raises(UserError, match=r"nothing\.beton: no such file; write it with `python write_datasets"):
        datasets.open_sets(missing)


@pytest.mark.parametrize(("names", "words"), [
    ("abcdefgh", None),
    ("abcde", None),
    ("abdce", "class 2 is 'd' in .*val.beton, while in .*big.beton class 2 is 'c'"),
    ("abcdefghi", "class 8 is 'i' in .*val.beton, while in .*big.beton there are 8 classes"),
])  # fmt: skip
def test_labels_mean_the_same_classes_in_training_and_validation(names, words, run, tmp_path, jpg_beton):
    """Photographs of coffee must not count as wrong because another folder's class 3 is a cat."""
    (tmp_path / "val.beton").symlink_to(jpg_beton)
    (tmp_path / "val.json").write_text(json.dumps({"classes": list(names)}))
    given = run(**{"data.val": str(tmp_path / "val.beton")})
    if words is None:
        assert datasets.open_sets(given)["main"].classes == 8
    else:
        with pytest.raises(UserError, match=words):
            datasets.open_sets(given)


def test_classes_of_the_run_must_hold_all_labels(run):
    assert datasets.open_sets(run(**{"model.classes": "9"}))["finetune"].classes == 9
    with pytest.raises(UserError, match=r"model\.classes is 7, but labels go up to 7"):
        datasets.open_sets(run(**{"model.classes": "7"}))


def test_plans_do_without_files(run):
    sets = datasets.planned_sets(run(**{"data.train": "x/imagenet21k_train.beton", "data.finetune_train": "my.beton"}))
    assert (sets["main"].train.samples, sets["main"].classes) == (13_151_276, 19_167)
    assert (sets["finetune"].train.samples, sets["finetune"].classes) == (1_281_167, 1_000)
    sets = datasets.planned_sets(run(**{"data.val": "nothing.beton"}))
    assert (sets["main"].train.samples, sets["main"].classes) == (96, 8)


def test_every_recipes_files_are_known_or_bundled():
    for path in (ROOT / "recipes").glob("**/*.yaml"):
        data = load_recipe(path).data
        for file in (data.train, data.val, data.finetune_train, data.finetune_val):
            name = None if file is None else Path(file).stem.rpartition("_")[0]
            assert name in (None, "photos", "own", *datasets.PUBLIC), path
