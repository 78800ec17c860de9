"""Folders against torchvision's ImageFolder, and the folders that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from conversion.sources import image_folder
from ffcv_ops.errors import UserError


def touch(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path, "PNG")


@pytest.fixture
def folder(tmp_path):
    """Names that sort differently by case, number and alphabet; links; things that are no images."""
    for split in ("train", "val"):
        for class_name in ("n10", "n9", "Z", "a", "über uns", ".hidden"):
            for file in ("10.JPEG", "9.jpg", "B.png", "a.PNG", "deep/er/1.tif", "deep/0.webp", "x.jpg/inside.bmp"):
                touch(tmp_path / "data" / split / class_name / file)
        (tmp_path / "data" / split / "a" / "notes.txt").write_text("no image")
        (tmp_path / "data" / split / "stray.jpg").write_text("in no class")
        (tmp_path / "data" / split / "a" / "link.jpg").symlink_to("9.jpg")
    touch(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "data" / "train" / "linked class").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "val" / "linked class").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "data"


def test_same_samples_as_torchvision(folder):
    source = image_folder(str(folder))
    assert list(source.splits) == ["train", "val"]
    for name, split in source.splits.items():
        reference = ImageFolder(folder / name)
        assert list(source.classes) == reference.classes
        assert [str(folder / path) for path in split.names] == [path for path, _ in reference.samples]
        assert split.labels.tolist() == reference.targets
        assert list(split.items) == list(split.names)


def test_train_alone(folder):
    (folder / "val").rename(folder / "test")
    assert list(image_folder(str(folder)).splits) == ["train", "test"]


def test_relative_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert image_folder("data").origin == str(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.rename(f.with_name("gone")), "data is not a folder"),
        (lambda f: (f / "train").rename(f / "trial"), "has class folders (trial) beside val/, which may be a class"),
        (lambda f: (f / "train" / "empty").mkdir(), "train/ and val/ must have the same classes, but val/ lacks empty"),
        (lambda f: touch(f / "val" / "new" / "1.jpg"), "must have the same classes, but train/ lacks new"),
        (lambda f: [(f / s / "empty").mkdir() for s in ("train", "val")], "train/empty has no images"),
        (lambda f: (f / "val" / "empty").mkdir() or touch(f / "train" / "empty" / "1.png"), "val/empty has no images"),
        (lambda f: touch(f / "train" / "a" / "two\nlines.jpg"), r"two\\x0alines.jpg has a line break"),
    ],
)
def test_folders_that_cannot_be_used(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        image_folder(str(folder))
    assert "\n" not in str(caught.value)


def test_no_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_text("")
    with pytest.raises(UserError, match="has no class folders"):
        image_folder(str(tmp_path))


def test_many_differing_classes_are_counted_not_listed(folder):
    for number in range(10):
        touch(folder / "train" / f"only{number}" / "1.jpg")
    with pytest.raises(UserError, match="val/ lacks only0, only1, only2 and 7 more"):
        image_folder(str(folder))


def test_a_link_to_a_folder_that_holds_it_is_not_followed(folder):
    before = list(image_folder(str(folder)).splits["train"].names)
    (folder / "train" / "a" / "deep" / "up").symlink_to(folder / "train" / "a")
    (folder / "train" / "a" / "again").symlink_to(folder / "train")
    assert list(image_folder(str(folder)).splits["train"].names) == before
