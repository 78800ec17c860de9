"""WebDataset shards against a plain reading of the same archives."""

import json
import os
import tarfile

import numpy as np
import pytest

from conversion.encode import ReadError
from conversion.sources import open_source
from conversion.sources.splits import split_of
from conversion.sources.synsets import class_list
from ffcv_ops.errors import UserError


def sample(key, image, label, *, end="jpg", number="cls", **more):
    """Members of one sample."""
    content = {"cls": str(label).encode(), "json": json.dumps({"label": label, **more}).encode()}
    return {f"{key}.{end}": image, f"{key}.{number}": content[number]}


@pytest.fixture
def folder(tmp_path, jpeg, packed):
    """Shards as timm's: keys of synsets, labels by ImageNet-1k's list; with .cls or .json."""
    root = tmp_path / "wds"
    root.mkdir()
    synsets = class_list("imagenet1k")

    def write(name, labels, first, **options):
        members = {}
        for k, label in enumerate(labels):
            members |= sample(f"{synsets[label]}_{first + k}", jpeg(first + k), label, **options)
        (root / name).write_bytes(packed(members))

    write("in1k-train-0000.tar", [3, 999, 0], 0)
    write("in1k-train-0001.tar", [7, 3], 3, number="json")
    write("in1k-train-0010.tar", [5], 5, end="JPG")
    write("in1k-validation-00.tar", [1, 2], 6, end="png")
    return root


def plainly(paths):
    """[(name, bytes, label)] by tarfile, sample by sample."""
    samples = []
    for path in paths:
        parts = {}
        with tarfile.open(path) as archive:
            for entry in archive:
                key, _, end = entry.name.partition(".")
                parts.setdefault(key, {})[end.lower()] = (entry.name, archive.extractfile(entry).read())
        for ends in parts.values():
            name, image = next(ends[end] for end in ("jpg", "png") if end in ends)
            label = int(ends["cls"][1]) if "cls" in ends else json.loads(ends["json"][1])["label"]
            samples.append((f"{path.name}/{name}", image, label))
    return samples


def listed(source, split):
    split = source.splits[split]
    return list(zip(split.names, map(source.read, split.items), split.labels.tolist(), strict=True))


def test_same_as_a_plain_reading(folder):
    source = open_source(str(folder))
    assert list(source.splits) == ["train", "val"]
    assert listed(source, "train") == plainly(sorted(folder.glob("*train*")))
    assert listed(source, "val") == plainly(sorted(folder.glob("*validation*")))


def test_keys_tell_the_names_of_classes(folder):
    source, known = open_source(str(folder)), class_list("imagenet1k")
    present = {0, 1, 2, 3, 5, 7, 999}
    assert source.classes == tuple(known[k] if k in present else str(k) for k in range(1000))


def test_keys_that_tell_nothing(folder, jpeg, packed):
    """One synset under two labels, or two synsets under one label: classes are numbers. Other keys do not matter."""
    for key, label in (("n01440764_1", 4), ("n99999999_1", 0)):
        (folder / "in1k-train-2.tar").write_bytes(packed(sample(key, jpeg(0), label)))
        assert open_source(str(folder)).classes == tuple(map(str, range(1000)))
    (folder / "in1k-train-2.tar").write_bytes(packed(sample("cat", jpeg(0), 4)))
    assert open_source(str(folder)).classes[3:5] == (class_list("imagenet1k")[3], "4")


def test_names_of_classes_from_a_list(folder):
    source = open_source(str(folder), classes="imagenet1k")
    assert source.classes == class_list("imagenet1k")
    with pytest.raises(UserError, match=r"images of label 0 are called n01440764_.*; the labels follow another list"):
        open_source(str(folder), classes="imagenet21k")


def test_a_pattern_and_one_shard(folder):
    source = open_source(str(folder / "in1k-train-*.tar"))
    assert list(source.splits) == ["train"] and listed(source, "train") == plainly(sorted(folder.glob("*train*")))
    source = open_source(str(folder / "in1k-train-0001.tar"))
    assert listed(source, "train") == plainly([folder / "in1k-train-0001.tar"])


def test_several_processes(folder, jpeg, packed):
    for k in range(40):
        (folder / f"in1k-train-1{k:03}.tar").write_bytes(packed(sample("x", jpeg(k), k)))
    alone, together = (open_source(str(folder), workers=workers) for workers in (1, 2))
    assert listed(alone, "train") == listed(together, "train") == plainly(sorted(folder.glob("*train*")))


@pytest.mark.parametrize(
    ("name", "split"),
    [("imagenet22k-train-0000.tar", "train"), ("imagenet22k-validation-0.tar", "val"), ("Test_1.tar", "test"),
     ("0001.tar", "train"), ("valid-00.tar", "val"), ("training.tar", "train"), ("contest-val.tar", "val")],
)  # fmt: skip
def test_the_split_is_in_the_name(name, split):
    assert split_of(name) == split


def info(folder, **changes):
    lengths = {"train": {"in1k-train-0000.tar": 3, "in1k-train-0001.tar": 2, "in1k-train-0010.tar": 1},
               "validation": {"in1k-validation-00.tar": 2}}  # fmt: skip
    splits = {
        name: {"name": name, "filenames": list(files), "shard_lengths": list(files.values()), "num_samples": 0}
        for name, files in lengths.items()
    }
    (folder / "_info.json").write_text(json.dumps({"splits": splits} | changes))
    return splits


def test_info_lists_the_shards(folder):
    info(folder)
    (folder / "in1k-train-9999.tar").write_bytes(b"not listed, so not read")
    source = open_source(str(folder))
    assert list(source.splits) == ["train", "val"] and len(source.splits["train"].labels) == 6


def listing(*names, length=3):
    one = {"filenames": ["in1k-train-0000.tar"], "shard_lengths": [length]}
    return json.dumps({"splits": dict.fromkeys(names, one)})


ELSEWHERE = '{"splits": {"train": {"filenames": ["/etc/x.tar"], "shard_lengths": [1]}}}'


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("in1k-train-0001.tar", None, "lacks in1k-train-0001.tar of the 4 shards in _info.json"),
        ("in1k-train-0001.tar", "in1k-train-0000.tar", "0001.tar has 3 samples, _info.json says 2"),
        ("_info.json", "{", "_info.json cannot be used"),
        ("_info.json", '{"splits": [1]}', "_info.json cannot be used"),
        ("_info.json", '{"splits": {"train": {}}}', "_info.json cannot be used"),
        ("_info.json", "[" * 10**5, "_info.json cannot be used"),
        ("_info.json", listing("train", length=1e999), "_info.json cannot be used"),
        ("_info.json", listing("train", length=None), "_info.json cannot be used"),
        ("_info.json", listing("train", "val"), "_info.json names a file twice"),
        ("_info.json", ELSEWHERE, "must name files of its own folder"),
        ("_info.json", listing("train", "train-extra"), "train and train-extra are both train; take one of them out"),
        ("_info.json", listing("train", "extra"), "the split extra is neither train, val nor test; take it out there"),
    ],
)
def test_info_that_does_not_fit(folder, file, content, message):
    """content: text, the name of a file whose content it is, or None for no file."""
    info(folder)
    if content is None:
        (folder / file).unlink()
    else:
        other = folder / content if content.endswith(".tar") else None
        (folder / file).write_bytes(other.read_bytes() if other else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(folder))
    assert "\n" not in str(caught.value)


def test_another_label(tmp_path, jpeg, packed):
    """A field of the .json by name; the number in .cls is another."""
    members = sample("a", jpeg(0), 7, number="json", label_12k=3) | {"a.cls": b"9"}
    (tmp_path / "0.tar").write_bytes(packed(members))
    labels = {label: open_source(str(tmp_path), label=label).splits["train"].labels.tolist()
              for label in ("auto", "label", "label_12k")}  # fmt: skip
    assert labels == {"auto": [9], "label": [7], "label_12k": [3]}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"", "a.cls": b"cat"}, "a.cls: the content is no class number"),
        ({"a.jpg": b"", "a.cls": b"-1"}, "a.cls: the content is no class number"),
        ({"a.jpg": b"", "a.cls": b"100000000"}, "has the label 100,000,000, where 999,999"),
        ({"a.jpg": b"", "a.json": b'{"label": true}'}, "a.json: the field label is no class number"),
        ({"a.jpg": b"", "a.json": b"[" * 100_000}, "a.json: the field label is no class number"),
        ({"a.jpg": b"", "b.cls": b"1"}, "0.tar: a has no .cls and no .json with a label"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"1"}, "a has several images: jpg, png"),
        ({"a.txt": b"", "a.cls": b"1"}, "no images in the split train"),
        ({}, "0.tar is an empty tar file"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path, packed, members, message):
    (tmp_path / "0.tar").write_bytes(packed(members))
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(tmp_path / "*.tar"))
    assert "\n" not in str(caught.value)


def test_a_shard_that_changes_under_the_conversion(folder):
    """Another one in its place, or the same one written anew."""
    source = open_source(str(folder))
    items = source.splits["train"].items
    first, _, _ = items[0]
    os.utime(first, ns=(0, 0))
    with pytest.raises(ReadError, match=rf"{first} was written to or replaced since its labels were read"):
        source.read(items[0])
    assert source.read(items[len(items) - 1])


def test_hostile_keys_are_names_only(tmp_path, jpeg, packed):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(packed(sample("../../x\ny", jpeg(0), 0)))
    source = open_source(str(tmp_path / "in"))
    assert listed(source, "train") == [("0.tar/../../x\\x0ay.jpg", jpeg(0), 0)]
    assert np.array_equal(source.splits["train"].labels, [0])
