"""torchvision's data sets: their own order, labels and pixels. Files are made here; nothing is downloaded."""

import hashlib
import io
import pickle
import urllib.error

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from conversion.sources import open_source, output_name
from ffcv_ops.errors import UserError


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-100's files with 20 + 10 images; the checksums that torchvision asks for are these files'."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    draws = np.random.default_rng(0)
    contents = {"meta": {"fine_label_names": [f"class {k}" for k in range(100)]}}
    for name, count in (("train", 20), ("test", 10)):
        labels = draws.integers(0, 100, count).tolist()
        contents[name] = {"data": draws.integers(0, 256, (count, 3072), dtype=np.uint8), "fine_labels": labels}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": sums["meta"]})
    return tmp_path


def held_against(source, split, reference):
    """Labels, and the pixels of every image, by torchvision's own indexing."""
    ours = source.splits[split]
    assert len(ours.items) == len(ours.names) == len(reference)
    for item, label, (image, target) in zip(ours.items, ours.labels, reference, strict=True):
        content = source.read(pickle.loads(pickle.dumps(item)))
        pixels = content if isinstance(content, np.ndarray) else Image.open(io.BytesIO(content)).convert("RGB")
        assert label == target and np.array_equal(pixels, image.convert("RGB"))


def test_cifar100(cifar):
    """Arrays; `train=True` and `train=False`."""
    source = open_source(f"torchvision:CIFAR100,root={cifar}")
    assert list(source.splits) == ["train", "test"] and len(source.classes) == 100 and source.classes[3] == "class 3"
    held_against(source, "train", datasets.CIFAR100(cifar, train=True))
    held_against(source, "test", datasets.CIFAR100(cifar, train=False))


@pytest.fixture
def flowers(tmp_path, jpeg):
    """Flowers102's files: image numbers of each split, and labels from 1 to 102."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for k in range(1, 13):
        (folder / "jpg" / f"image_{k:05}.jpg").write_bytes(jpeg(k))
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 102, 1, 5, 5, 6, 9, 13, 1, 2, 3, 4]])})
    ids = {"trnid": [[2, 11, 7]], "valid": [[1, 3]], "tstid": [[12, 9, 4, 5]]}
    scipy.io.savemat(folder / "setid.mat", {name: np.array(numbers) for name, numbers in ids.items()})
    return tmp_path


def test_flowers102(flowers, monkeypatch):
    """Files; split= train, val and test. Their bytes are read as they are."""
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    source = open_source(f"torchvision:Flowers102,root={flowers}")
    assert list(source.splits) == ["train", "val", "test"]
    for split in source.splits:
        held_against(source, split, datasets.Flowers102(flowers, split=split))
    assert source.read(source.splits["train"].items[1]) == (flowers / "flowers-102/jpg/image_00011.jpg").read_bytes()
    assert list(source.splits["val"].names) == ["flowers-102/jpg/image_00001.jpg", "flowers-102/jpg/image_00003.jpg"]


def test_inaturalist(tmp_path, jpeg):
    """version= 2021_train and 2021_valid; classes are folders."""
    for version in ("2021_train", "2021_valid"):
        for number, kind in enumerate(("Animalia_A_B_C_D_E_f", "Plantae_A_B_C_D_G_h")):
            folder = tmp_path / version / f"{number:05}_{kind}"
            folder.mkdir(parents=True)
            for k in range(2):
                (folder / f"{k}.jpg").write_bytes(jpeg(10 * number + k))
    source = open_source(f"torchvision:INaturalist,root={tmp_path}")
    assert source.classes == ("00000_Animalia_A_B_C_D_E_f", "00001_Plantae_A_B_C_D_G_h")
    for split, version in (("train", "2021_train"), ("val", "2021_valid")):
        held_against(source, split, datasets.INaturalist(tmp_path, version))


def test_imagenette(tmp_path, jpeg):
    """Classes are synsets, so that weights of ImageNet find theirs."""
    for split in ("train", "val"):
        for synset in ("n01440764", "n03888257"):
            folder = tmp_path / "imagenette2" / split / synset
            folder.mkdir(parents=True)
            (folder / f"{synset}_1.JPEG").write_bytes(jpeg(1))
    source = open_source(f"torchvision:Imagenette,root={tmp_path}")
    assert source.classes == ("n01440764", "n03888257") and list(source.splits) == ["train", "val"]
    held_against(source, "val", datasets.Imagenette(tmp_path, "val"))


def test_fake_data():
    """No root, no splits, arguments that are numbers and tuples."""
    source = open_source("torchvision:FakeData,size=6,num_classes=3")
    assert list(source.splits) == ["train"]
    held_against(source, "train", datasets.FakeData(size=6, num_classes=3))


def test_a_split_of_ones_own(flowers, monkeypatch):
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    source = open_source(f"torchvision:Flowers102,root={flowers},split=test")
    assert list(source.splits) == ["train"] and len(source.splits["train"].labels) == 4


def test_without_a_network(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(UserError, match="torchvision:CIFAR100 is not available: <urlopen error no network>"):
        open_source(f"torchvision:CIFAR100,root={tmp_path}")
    assert "CIFAR100 is not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:CIFAR1000", "torchvision has no data set CIFAR1000"),
        ("torchvision:wrap_dataset_for_transforms_v2", "has no data set"),
        ("torchvision:os", "has no data set os"),
        ("torchvision:VisionDataset", "has no data set VisionDataset"),
        ("torchvision:CIFAR100,/data", "after the name come arguments such as root=/data, not '/data'"),
        ("torchvision:FakeData,image_size=[]", r"image_size=\[\] can only be a word, a number or a tuple"),
        ("torchvision:CIFAR100,roots=/data", "CIFAR100 is not available: .*unexpected keyword argument 'roots'"),
        ("torchvision:FakeData,size=0", "train is empty or has images without a label"),
        ("torchvision:EMNIST", "torchvision:EMNIST is not available: .*'split'"),
    ],
)
def test_what_cannot_be_had(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(source)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("torchvision:CIFAR100,root=/x", "cifar100"),
        ("/data/imagenet", "imagenet"),
        ("x/fall11_whole.tar", "fall11_whole"),
        ("/wds/in22k-train-*.tar", "in22k-train"),
        ("/d/*.parquet", "images"),
    ],
)
def test_names_of_what_is_written(place, name):
    assert output_name(place) == name
