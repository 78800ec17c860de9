"""From outside: how a source is divided, what the files say of it, and what may not be overwritten or stay behind."""

import json
import shutil
from pathlib import Path

import pytest

from ffcv_ops.errors import UserError
from ffcv_ops.storage.pairs import pair_remark

PETS = [f"pets/{name}/{k}.jpg" for name, count in (("ant", 7), ("bee", 13), ("cow", 5)) for k in range(count)]


def lines_of(split, out="data/pets"):
    return Path(f"{out}_{split}.files.txt").read_text().splitlines()


def said(split, out="data/pets"):
    return json.loads(Path(f"{out}_{split}.json").read_text())


def classes(names):
    return [sum(name.startswith(one) for name in names) for one in ("ant/", "bee/", "cow/")]


def test_folds(pictures, write):
    """Disjoint, together all, each class and the whole evenly; another seed deals otherwise."""
    pictures(*PETS)
    parts = []
    for fold in range(4):
        done = write("--data.source=pets", "--data.folds=4", f"--data.fold={fold}")
        assert done.status == 0, done.err
        train, val = (lines_of(split, f"data/pets_fold{fold}") for split in ("train", "val"))
        assert sorted(train + val) == sorted(name.removeprefix("pets/") for name in PETS)
        parts.append(val)
    assert sorted(name for part in parts for name in part) == sorted(train + val)
    assert all(low <= count <= low + 1 for part in parts for count, low in zip(classes(part), (1, 3, 1), strict=True))
    assert sorted(map(len, parts)) == [6, 6, 6, 7]
    assert write("--data.source=pets", "--data.folds=4", "--data.fold=3", "--data.seed=1", "--data.out=o").status == 0
    assert lines_of("val", "o") != parts[3]
    assert said("val", "o")["made"] == {"source": str(Path("pets").absolute()), "folds": 4, "fold": 3, "seed": 1}


def test_few_of_each_class(pictures, write):
    """Train alone; a smaller number is part of a larger one."""
    pictures(*PETS)
    found = {}
    for count in (2, 6, None):
        words = [f"--data.per_class={count}"] if count else []
        done = write("--data.source=pets", "--data.val_share=0.2", f"--data.out=data/{count}", *words)
        assert done.status == 0, done.err
        found[count] = [set(lines_of(split, f"data/{count}")) for split in ("train", "val")]
    assert [classes(found[count][0]) for count in found] == [[2, 2, 2], [6, 6, 4], [6, 10, 4]]
    assert found[2][0] < found[6][0] < found[None][0]
    assert found[2][1] == found[6][1] == found[None][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.folds=4"], "data.folds is their number, data.fold the one that is val"),
        (["--data.fold=0"], "data.folds is their number"),
        (["--data.folds=4", "--data.fold=4"], "data.folds is their number"),
        (["--data.folds=4", "--data.fold=0", "--data.val_share=0.1"], "both make a val; give one of them"),
        (["--data.folds=26", "--data.fold=0"], "has 25 images; data.folds=26 needs as many"),
        (["--data.images=pets"], "data.images is for a list with labels"),
    ],
)
def test_divisions_that_cannot_be(pictures, write, words, message):
    pictures(*PETS)
    done = write("--data.source=pets", *words)
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1


def test_sizes_of_classes_are_told(pictures, write):
    pictures(*PETS)
    done = write("--data.source=pets", "--data.val_share=none")
    assert "train: 3 classes, smallest 5 (cow), median 7, largest 13 (bee)\n" in done.err
    assert "warning" not in done.err  # 52 %, but not twice the next
    pictures(*(f"pets/bee/more{k}.jpg" for k in range(2)))
    done = write("--data.source=pets", "--data.val_share=none")
    assert "warning: 56% of train is bee; docs/finetuning.md, Classes of different size, says" in done.err
    pictures("one/ant/1.jpg", "one/ant/2.jpg")
    assert "warning: all of train is one class, ant; nothing can be learned" in write("--data.source=one").err


def test_a_stale_validation(pictures, write):
    """The first of all faults: val of one conversion beside train of another, which holds its images."""
    pictures(*PETS)
    assert write("--data.source=pets", "--data.val_share=0.2").status == 0
    train, val = Path("data/pets_train.beton"), Path("data/pets_val.beton")
    assert said("train")["pair"] == said("val")["pair"] and pair_remark(train, val) == ""
    before = train.read_bytes()
    done = write("--data.source=pets", "--data.val_share=none")
    assert done.status == 2 and train.read_bytes() == before
    assert (
        "pets_train.beton was made with data.val_share 0.2; now it is not given; --data.replace=true replaces it"
        in done.err
    )
    shutil.copytree("data", "stale")
    done = write("--data.source=pets", "--data.val_share=none", "--data.replace=true")
    assert done.status == 0 and "data/pets_val.beton is removed: it belonged to what was replaced" in done.out
    assert sorted(path.name for path in Path("data").iterdir()) == [
        f"pets_train.{end}" for end in ("beton", "files.txt", "json", "xxh64")
    ]
    with pytest.raises(
        UserError, match=r"5 of the 5 images of stale/pets_val.beton are in data/pets_train.beton too, the"
    ):
        pair_remark(train, Path("stale/pets_val.beton"))


def test_a_folder_that_lost_its_val(pictures, write):
    pictures("pets/train/ant/1.jpg", "pets/train/bee/1.jpg", "pets/val/ant/1.jpg", "pets/val/bee/1.jpg")
    assert write("--data.source=pets").status == 0
    shutil.rmtree("pets/val")
    done = write("--data.source=pets")
    assert done.status == 2
    assert "pets_val.beton is there, but this conversion writes no val; --data.replace=true removes it" in done.err


def test_another_folder_of_the_same_name(pictures, write):
    pictures(*PETS)
    pictures(*(f"b/{name}" for name in PETS), first=50)
    assert write("--data.source=pets").status == 0
    again = write("--data.source=./pets/")
    assert again.status == 0, again.err
    done = write("--data.source=b/pets")
    assert done.status == 2 and done.err.count("\n") <= 2
    assert f"was made with data.source {Path('pets').absolute()}; now it is {Path('b/pets').absolute()};" in done.err
    assert write("--data.source=b/pets", "--data.out=data/b").status == 0
    remark = pair_remark(Path("data/pets_train.beton"), Path("data/b_val.beton"))
    assert remark == (
        "data/b_val.beton and data/pets_train.beton are of different conversions, of"
        f" {Path('b/pets').absolute()} and {Path('pets').absolute()}"
    )
    assert write("--data.source=b/pets", "--data.replace=true").status == 0
    assert said("val")["source"] == str(Path("b/pets").absolute())


def test_files_of_before_and_files_that_say_nothing(pictures, write):
    """Old descriptions have their source alone; of no description nothing can be known."""
    pictures(*PETS)
    assert write("--data.source=pets").status == 0
    for split in ("train", "val"):
        old = {name: value for name, value in said(split).items() if name not in ("made", "pair")}
        Path(f"data/pets_{split}.json").write_text(json.dumps(old))
    assert pair_remark(Path("data/pets_train.beton"), Path("data/pets_val.beton")) == ""
    Path("data/pets_val.json").unlink()
    done = write("--data.source=pets")
    assert done.status == 2 and "pets_val.beton has no .json that tells what it was made of" in done.err
    Path("data/pets_val.beton").unlink()
    assert write("--data.source=pets").status == 0


def test_one_image_twice_in_a_source_is_counted(pictures, write):
    """That is how the source is: it is said, and not refused."""
    files = pictures("pets/train/ant/1.jpg", "pets/train/bee/1.jpg", "pets/val/ant/1.jpg", "pets/val/bee/1.jpg")
    Path("pets/val/bee/1.jpg").write_bytes(files["pets/train/ant/1.jpg"])
    assert write("--data.source=pets", "--image.levels=20,10").status == 0
    remark = pair_remark(Path("data/pets_train.beton"), Path("data/pets_val.beton"))
    assert remark == (
        "1 of the 2 images of data/pets_val.beton are in data/pets_train.beton too, the first is sample 1 val/bee/1.jpg"
    )


def test_a_stop_between_the_splits_is_no_other_conversion(pictures, write):
    pictures(*(f"pets/{split}/{name}/{k}.jpg" for split in ("train", "val") for name in ("ant", "bee") for k in "123"))
    sound = Path("pets/val/bee/2.jpg").read_bytes()
    Path("pets/val/bee/2.jpg").write_bytes(b"no picture")
    assert write("--data.source=pets").status == 2
    Path("pets/val/bee/2.jpg").write_bytes(sound)
    done = write("--data.source=pets")
    assert done.status == 0 and "finished before" in done.out
    assert said("train")["pair"] == said("val")["pair"]
