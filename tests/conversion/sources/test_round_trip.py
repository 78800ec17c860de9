"""write_datasets.py from every kind of source: the same pictures give the same .beton, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchvision.datasets import FakeData, ImageFolder

from conversion import beton
from conversion.sources.ilsvrc import SYNSETS, TRAIN, VAL
from conversion.sources.synsets import class_list

ROOT = Path(__file__).resolve().parents[3]
CLASSES = ("n01440764", "n01443537")


def convert(source, out, *words, workers=2):
    command = [sys.executable, str(ROOT / "write_datasets.py"), f"--data.source={source}", f"--data.out={out}"]
    done = subprocess.run([*command, f"--data.workers={workers}", *words], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return {path.name.rsplit("_", 1)[1]: path.read_bytes() for path in out.parent.glob(f"{out.name}_*.beton")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, jpeg):
    """train/ and val/ of two classes, 12 and 4 pictures."""
    root, number = tmp_path_factory.mktemp("round") / "in", 0
    for split, count in (("train", 6), ("val", 2)):
        for synset in CLASSES:
            (root / split / synset).mkdir(parents=True)
            for k in range(count):
                name = f"{synset}_{k}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08}.JPEG"
                (root / split / synset / name).write_bytes(jpeg(number))
                number += 1
    return root


@pytest.fixture(scope="module")
def expected(folder):
    """The .beton files of the folder, which hold torchvision's labels."""
    files = convert(folder, folder.parent / "folder")
    for split in ("train", "val"):
        samples = list(beton.read(folder.parent / f"folder_{split}.beton"))
        assert [label for _, label in samples] == ImageFolder(folder / split).targets
    return files


def samples_of(folder, split):
    return [(Path(path), label) for path, label in ImageFolder(folder / split).samples]


def as_ilsvrc(folder, packed, root):
    classes = {}
    for synset in CLASSES:
        images = sorted((folder / "train" / synset).iterdir(), reverse=True)
        classes[f"{synset}.tar"] = packed({path.name: path.read_bytes() for path in images})
    (root / TRAIN).write_bytes(packed(classes))
    val = samples_of(folder, "val")
    (root / VAL).write_bytes(packed({path.name: path.read_bytes() for path, _ in val}))
    (root / SYNSETS).write_text("".join(f"{path.parent.name}\n" for path, _ in val))
    return root


def as_webdataset(folder, packed, root):
    for split in ("train", "val"):
        samples = samples_of(folder, split)
        for shard, first in enumerate(range(0, len(samples), 5)):
            members = {}
            for path, label in samples[first : first + 5]:
                members |= {f"{path.stem}.jpg": path.read_bytes(), f"{path.stem}.cls": b"%d" % label}
            (root / f"x-{split}-{shard:04}.tar").write_bytes(packed(members))
    return root


def as_parquet(folder, packed, root):
    label = {"names": list(CLASSES), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})}
    for split, name in (("train", "train"), ("val", "validation")):
        samples = samples_of(folder, split)
        images = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in samples]
        table = pa.table({"image": images, "label": [label for _, label in samples]})
        file = root / f"{name}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=5)
    return root


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("layout", "words", "classes"),
    [
        (as_ilsvrc, [], CLASSES),
        (as_webdataset, [], CLASSES),
        (as_webdataset, ["--data.classes=imagenet1k"], class_list("imagenet1k")),
        (as_parquet, [], CLASSES),
    ],
)
def test_same_files_as_from_the_folder(layout, words, classes, folder, expected, packed, tmp_path):
    (tmp_path / "in").mkdir()
    assert convert(layout(folder, packed, tmp_path / "in"), tmp_path / "out", *words) == expected
    told = tuple(json.loads((tmp_path / "out_train.json").read_text())["classes"])
    assert told == classes
    lines = (tmp_path / "out_train.files.txt").read_text().splitlines()
    assert len(lines) == 12 and all(Path(line).stem.startswith("n0144") for line in lines)


@pytest.mark.timeout(200)
def test_torchvision_gives_the_same_file(folder, expected, tmp_path):
    files = convert(f"torchvision:ImageFolder,root={folder / 'train'}", tmp_path / "out")
    assert files == {"train.beton": expected["train.beton"]}
    assert json.loads((tmp_path / "out_train.json").read_text())["classes"] == list(CLASSES)


@pytest.mark.timeout(200)
def test_pixels_from_torchvision(tmp_path):
    """A worker makes the data set for itself."""
    files = convert("torchvision:FakeData,size=20,num_classes=3", tmp_path / "out", "--image.mode=raw", workers=1)
    assert list(files) == ["train.beton"]
    reference = FakeData(size=20, num_classes=3)
    for (rgb, label), (image, target) in zip(beton.read(tmp_path / "out_train.beton"), reference, strict=True):
        assert label == target and (rgb == image).all()
