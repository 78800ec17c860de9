"""What a place is taken for."""

import re

import pytest

from conversion.sources import _kind_of, open_source
from ffcv_ops.errors import UserError


@pytest.fixture
def places(tmp_path, packed, jpeg):
    shard = packed({"a.jpg": jpeg(0), "a.cls": b"0"})
    of_class = packed({"n_1.JPEG": jpeg(0), "n_2.JPEG": jpeg(1)})
    files = {
        "folder/train/a/1.jpg": jpeg(0),
        "ilsvrc/ILSVRC2012_img_train.tar": packed({"a.tar": of_class}),
        "whole.tar": packed({"./winter21/a.tar": of_class}),
        "classes/n01440764.tar": of_class,
        "shards/0000.tar": shard,
        "one.tar": shard,
        "hf/data/train-0.parquet": b"",
        "flat/train-0.parquet": b"",
        "empty/readme.txt": b"",
        "nothing.tar": packed({}),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "kind"),
    [("folder", "folder"), ("ilsvrc", "ILSVRC"), ("whole.tar", "class tars"), ("classes", "class tars"),
     ("shards", "WebDataset"), ("shards/*.tar", "WebDataset"), ("one.tar", "WebDataset"), ("hf", "Parquet or Arrow"),
     ("flat", "Parquet or Arrow"), ("flat/train-*.parquet", "Parquet or Arrow"), ("empty", "folder")],
)  # fmt: skip
def test_what_a_place_is(places, place, kind):
    assert _kind_of(str(places / place)) == kind


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gone", "gone is not a folder, and there are no such files"),
        ("gone/*.tar", "gone/*.tar is not a folder"),
        ("nothing.tar", "nothing.tar is an empty tar file"),
        ("empty", "empty has no class folders; images belong in"),
        ("flat/readme.md.parquet", "holds no .parquet or .arrow files"),
    ],
)
def test_places_that_are_nothing(places, place, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_source(str(places / place))


def test_a_label_that_nobody_would_read(places):
    with pytest.raises(UserError, match=r"data.label is for a list, WebDataset, Parquet or Arrow; "):
        open_source(str(places / "folder"), label="fine_label")
