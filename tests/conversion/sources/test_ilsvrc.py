"""ILSVRC's tar files against what torchvision's ImageNet makes of them."""

import io
import tarfile

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import imagenet

from conversion.sources import open_source
from conversion.sources.ilsvrc import DEVKIT, META, SYNSETS, TRAIN, TRUTH, VAL
from conversion.sources.synsets import class_list
from ffcv_ops.errors import UserError

SYNSET_OF = {1: "n02119789", 2: "n01440764", 3: "n04116512"}  # the devkit's numbers do not follow the synsets' order
TRUTHS = [2, 1, 3, 1, 2]
LEAF, PARENT = 0, 2  # children in WordNet


def meta():
    """The struct array of meta.mat, with a row that is no class of the challenge."""
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "train_images")
    rows = np.zeros((4, 1), [(name, object) for name in names])
    for row, (number, synset, children) in zip(
        rows[:, 0], [*((n, s, LEAF) for n, s in SYNSET_OF.items()), (4, "n00001740", PARENT)], strict=True
    ):
        values = (number, synset, f"word {number}, other word", "gloss", children, 0, 1, 1300)
        for name, value in zip(names, values, strict=True):
            row[name] = value
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": rows})
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path, jpeg, packed):
    """Members in no order, as in the real files; numbers that sort differently as text."""
    images = iter(range(100))
    classes = {
        f"{synset}.tar": packed({f"{synset}_{number}.JPEG": jpeg(next(images)) for number in (18, 2, 10026)})
        for synset in SYNSET_OF.values()
    }
    root = tmp_path / "ilsvrc"
    root.mkdir()
    (root / TRAIN).write_bytes(packed(classes))
    val = {f"ILSVRC2012_val_{k + 1:08}.JPEG": jpeg(next(images)) for k in (3, 0, 4, 2, 1)}
    (root / VAL).write_bytes(packed(val))
    data = {"readme.txt": b"", f"data/{META}": meta(), f"data/{TRUTH}": "".join(f"{k}\n" for k in TRUTHS).encode()}
    with tarfile.open(root / DEVKIT, "w:gz") as archive:
        for name, content in data.items():
            entry = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return root


@pytest.fixture
def unpacked(folder, tmp_path, monkeypatch):
    """What torchvision unpacks: train/ and val/ of class folders."""
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *_: None)
    copy = tmp_path / "torchvision"
    copy.mkdir()
    for name in (TRAIN, VAL, DEVKIT):
        (copy / name).write_bytes((folder / name).read_bytes())
    return {split: imagenet.ImageNet(str(copy), split) for split in ("train", "val")}


def same_as(source, split, reference, root):
    """Order, names, labels and bytes are those of torchvision's data set."""
    split_of_ours = source.splits[split]
    assert [str(root / name) for name in split_of_ours.names] == [path for path, _ in reference.samples]
    assert split_of_ours.labels.tolist() == reference.targets
    assert split_of_ours.labels.dtype == np.int64
    for item, (path, _) in zip(split_of_ours.items, reference.samples, strict=True):
        with open(path, "rb") as file:
            assert source.read(item) == file.read()


def test_same_as_torchvision(folder, unpacked, tmp_path):
    before = sorted(file.name for file in folder.iterdir())
    source = open_source(str(folder))
    assert source.classes == tuple(unpacked["train"].wnids)
    for split, reference in unpacked.items():
        same_as(source, split, reference, tmp_path / "torchvision")
    assert sorted(file.name for file in folder.iterdir()) == before


def test_devkit_unpacked_or_one_synset_a_line(folder):
    expected = open_source(str(folder)).splits["val"].labels.tolist()
    with tarfile.open(folder / DEVKIT) as devkit:
        content = {name: devkit.extractfile(f"ILSVRC2012_devkit_t12/data/{name}").read() for name in (META, TRUTH)}
    (folder / DEVKIT).unlink()
    with pytest.raises(UserError, match=r"lacks ILSVRC2012_devkit_t12.tar.gz"):
        open_source(str(folder))
    for name, text in content.items():
        (folder / name).write_bytes(text)
    assert open_source(str(folder)).splits["val"].labels.tolist() == expected
    (folder / META).unlink()
    (folder / SYNSETS).write_text("".join(f"{SYNSET_OF[k]}\n" for k in TRUTHS))
    assert open_source(str(folder)).splits["val"].labels.tolist() == expected


def test_class_tars_of_21k(folder, unpacked, tmp_path, capsys):
    """The train tar by itself, and a folder of class tars; in the order of ImageNet-21k's list."""
    reference = unpacked["train"]
    same_as(open_source(str(folder / TRAIN)), "train", reference, tmp_path / "torchvision")
    (tmp_path / "classes").mkdir()
    with tarfile.open(folder / TRAIN) as outer:
        for entry in outer:
            (tmp_path / "classes" / entry.name).write_bytes(outer.extractfile(entry).read())
    same_as(open_source(str(tmp_path / "classes")), "train", reference, tmp_path / "torchvision")

    source = open_source(str(tmp_path / "classes"), classes="imagenet21k")
    assert source.classes == class_list("imagenet21k")
    labels = [source.classes.index(reference.wnids[target]) for target in reference.targets]
    assert source.splits["train"].labels.tolist() == labels
    assert "21,838 of 21,841 classes have no images in train: n00004475" in capsys.readouterr().err


def test_names_are_only_names(tmp_path, packed, jpeg):
    """Line breaks and ways out of the folder stay in one line and write nothing."""
    (tmp_path / "in").mkdir()
    hostile = packed({"../../../escaped.jpg": jpeg(0), "/abs.jpg": jpeg(1), "new\nline.jpg": jpeg(2)})
    (tmp_path / "in" / "a.tar").write_bytes(packed({"../b\n.tar": hostile}))
    source = open_source(str(tmp_path / "in" / "a.tar"))
    assert source.classes == ("b\\x0a",)
    assert sorted(source.splits["train"].names) == [
        "train/b\\x0a/../../../escaped.jpg", "train/b\\x0a//abs.jpg", "train/b\\x0a/new\\x0aline.jpg"
    ]  # fmt: skip
    assert sorted(map(source.read, source.splits["train"].items)) == sorted(jpeg(k) for k in range(3))
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, packed: (f / SYNSETS).write_text("n01440764\n"), "5 images, and the list of their classes 1 lines"),
        (lambda f, packed: (f / SYNSETS).write_text("n00000000\n" * 5), "images of n00000000, which .* lacks"),
        (lambda f, packed: (f / TRUTH).write_text("1\n2\n9\n1\n1\n"), "9 is not the number of a class"),
        (lambda f, packed: (f / META).write_bytes(b"no mat file"), "meta.mat of .* cannot be read"),
        (lambda f, packed: (f / DEVKIT).write_bytes(b"no gzip"), "t12.tar.gz cannot be read"),
        (lambda f, packed: (f / DEVKIT).write_bytes((f / DEVKIT).read_bytes()[:200]), "t12.tar.gz cannot be read"),
        (lambda f, packed: (f / TRAIN).write_bytes(packed({})), "holds no class tars"),
        (lambda f, packed: (f / TRAIN).write_bytes(packed({"a.jpg": b""})), "a.jpg is not a class's tar file"),
        (lambda f, packed: (f / TRAIN).write_bytes(packed({"a.tar": packed({"x.txt": b"1"})})), "a.tar has no images"),
        (lambda f, packed: (f / TRAIN).write_bytes(packed({"a.tar": b"z" * 512})), "img_train.tar is not a whole tar"),
        (lambda f, packed: (f / TRAIN).write_bytes((f / TRAIN).read_bytes()[:-12_000]), "train.tar is not a whole tar"),
    ],
)
def test_what_cannot_be_used(folder, packed, spoil, message):
    spoil(folder, packed)
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(folder))
    assert "\n" not in str(caught.value)
