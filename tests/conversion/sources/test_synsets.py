"""Class lists against timm's own reader of them."""

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo
from torchvision.datasets import ImageFolder

from conversion.sources import open_source, synsets
from ffcv_ops.errors import UserError

TIMMS = {"imagenet1k": "imagenet-1k", "imagenet12k": "imagenet-12k", "imagenet21k": "imagenet-22k",
         "imagenet21k_goog": "imagenet-21k-goog"}  # fmt: skip


@pytest.mark.parametrize(("ours", "count"), [("imagenet1k", 1000), ("imagenet12k", 11_821), ("imagenet21k", 21_841),
                                             ("imagenet21k_goog", 21_843)])  # fmt: skip
def test_lists_are_timms(ours, count):
    assert list(synsets.class_list(ours)) == ImageNetInfo(TIMMS[ours]).label_names()
    assert len(synsets.class_list(ours)) == count


def test_winter21_is_what_the_release_holds():
    """Any 19,167 of fall11's classes: the list is not in timm, so that the folders are it."""
    known = synsets.class_list("imagenet21k")
    found = [*known[2000:21_000], *known[:167]]
    assert synsets.ordered(found, "winter21", "w21") == tuple(sorted(found))
    with pytest.raises(UserError, match=r"w21 has 19,166 classes; winter21 has 19,167"):
        synsets.ordered(found[1:], "winter21", "w21")
    with pytest.raises(UserError, match="not in the 21,841 synsets of ImageNet-21k: n00000001"):
        synsets.ordered([*found[1:], "n00000001"], "winter21", "w21")
    assert synsets.named(19_167, sorted(found), "winter21", "shards") == tuple(sorted(found))
    with pytest.raises(UserError, match="shards has its classes not in the order of their synsets"):
        synsets.named(19_167, found, "winter21", "shards")
    with pytest.raises(UserError, match="timm has no list"):
        synsets.named(19_167, None, "winter21", "shards")


@pytest.fixture
def folder(tmp_path):
    for name in ("train/n01440764", "train/n01443537", "train/n01484850", "val/n01443537"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "in" / name / "1.png")
    return tmp_path / "in"


def test_a_folder_by_a_list(folder, capsys):
    """Labels are places in the list; val may have fewer classes, since its numbers do not depend on its folders."""
    with pytest.raises(UserError, match="val/ lacks n01440764, n01484850"):
        open_source(str(folder))
    source = open_source(str(folder), classes="imagenet21k")
    for name, split in source.splits.items():
        reference = ImageFolder(folder / name)
        assert [source.classes[label] for label in split.labels] == [reference.classes[t] for t in reference.targets]
    assert "21,838 of 21,841 classes have no images in train" in capsys.readouterr().err


def test_a_list_of_ones_own(folder, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("n01484850\nn99999999\nn01443537\r\n\nn01440764\n")
    source = open_source(str(folder), classes=str(tmp_path / "list.txt"))
    assert source.classes == ("n01484850", "n99999999", "n01443537", "n01440764")
    assert source.splits["train"].labels.tolist() == [3, 2, 0] and source.splits["val"].labels.tolist() == [2]
    assert "1 of 4 classes have no images in train: n99999999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764\n", r"in/train has classes that are not in data.classes=.*list.txt: n01443537, n01484850"),
        ("n01440764\nn01443537\nn01484850\nn01443537\n", "n01443537 appear twice"),
        ("\n\n", "no classes"),
        (None, r"list.txt cannot be read: No such file or directory; a file, or one of auto, sorted, numeric, "),
    ],
)
def test_lists_that_cannot_be_used(folder, tmp_path, text, message):
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(str(folder), classes=str(tmp_path / "list.txt"))


def test_one_name_in_two_unicode_forms(tmp_path, jpeg):
    """macOS writes an accent as a character of its own; the folders look the same."""
    for composed, decomposed in ((["train"], ["train"]), (["train"], ["val"])):
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for splits, name in ((composed, "caf\xe9"), (decomposed, "cafe\u0301")):
            for split in splits:
                (place / split / name).mkdir(parents=True)
                (place / split / name / "a.jpg").write_bytes(jpeg(0))
        with pytest.raises(UserError, match=r"two Unicode forms, 'caf.* and 'caf.*; rename one"):
            open_source(str(place))
    (tmp_path / "list.txt").write_text("cafe\u0301\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"and data.classes=.* one class is written in two Unicode forms"):
        synsets.ordered(["caf\xe9"], str(tmp_path / "list.txt"), "x")


def test_numbers_without_names():
    assert synsets.named(3, None, "auto", "x") == ("0", "1", "2")
    assert synsets.named(2, ["cat", "dog", "cow"], "auto", "x") == ("cat", "dog", "cow")
    assert synsets.named(1000, None, "imagenet1k", "x") == synsets.class_list("imagenet1k")
    with pytest.raises(UserError, match=r"x has the label 1,000, data.classes=imagenet1k 1,000 classes"):
        synsets.named(1001, None, "imagenet1k", "x")
