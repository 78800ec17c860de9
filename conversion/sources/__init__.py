"""Where images come from: `data.source` -> a Source, with the items, names and labels of its splits."""

import itertools
import re
import sys
from pathlib import Path

import numpy as np

from conversion.sources import (
    archive,
    dataset_object,
    ilsvrc,
    label_list,
    parquet,
    splits,
    synsets,
    tars,
    torchvision,
    webdataset,
)
from conversion.sources.folder import TABLES, image_folder
from conversion.sources.selection import has_image_name, junk_folder
from conversion.sources.source import Source, Split, first_few, read_file
from ffcv_ops.errors import UserError, one_line

__all__ = ["Source", "Split", "image_folder", "open_source", "output_name", "read_file"]

LABELED = ("a list", "WebDataset", "Parquet or Arrow")  # kinds that may have several labels
LOOKED_AT = 1000  # members of a tar file that show what it is


def open_source(
    place: str, *, classes: str = synsets.AUTO, label: str = "auto", images: str | None = None, workers: int = 1
) -> Source:
    """The data set at `place`, recognized by what lies there: class folders, a zip or tar file of them, a list with
    labels, `torchvision:NAME`, another `module:name`, ILSVRC's or other class tars, WebDataset shards, Parquet or Arrow
    files. docs/sources.md describes each. A source that is not divided has the one split ALL.

    classes: auto, a list's name or a file (synsets.py). label: where lists, WebDataset and Parquet keep it. images: the
    folder of a list's images. workers: processes that read the headers of tar files. What the place was taken for, and
    which classes have no images in train, is printed on standard error."""
    kind = _kind_of(place)
    if label != "auto" and kind not in LABELED:
        raise UserError(f"data.label is for {', '.join(LABELED)}; {place} tells its labels itself")
    if images is not None and kind != "a list":
        raise UserError(f"data.images is for a list with labels; {place} has its images itself")
    match kind:
        case "torchvision":
            source = torchvision.torchvision(place, classes)
        case "a Python data set":
            source = dataset_object.dataset_object(place, classes)
        case "ILSVRC":
            source = ilsvrc.ilsvrc(place, classes, workers)
        case "class tars":
            source = ilsvrc.class_tars(place, classes, workers)
        case "WebDataset":
            source = webdataset.webdataset(place, classes, label, workers)
        case "Parquet or Arrow":
            source = parquet.parquet(place, classes, label)
        case "a list":
            source = label_list.label_list(place, classes, label, images)
        case "a zip of class folders":
            source = archive.zip_file(place, classes)
        case "a tar of class folders":
            source = archive.tar_file(place, classes)
        case "folder":
            source = image_folder(place, classes)
    if kind not in ("folder", "torchvision"):
        sizes = ", ".join(f"{name} {len(split.items):,}" for name, split in source.splits.items())
        sizes = sizes.removeprefix(f"{splits.ALL} ")
        classes = f"{len(source.classes):,} classes ({first_few(source.classes)})"
        print(f"{one_line(place)} is read as {kind}: {sizes} images, {classes}", file=sys.stderr)
    if train := source.splits.get("train") or source.splits.get(splits.ALL):
        counts = np.bincount(train.labels, minlength=len(source.classes))
        if empty := [name for name, count in zip(source.classes, counts, strict=True) if not count]:
            share = f"{len(empty):,} of {len(source.classes):,} classes"
            print(f"{share} have no images in train: {first_few(empty)}", file=sys.stderr)
    return source


def _kind_of(place: str) -> str:
    if place.startswith(torchvision.PREFIX):
        return "torchvision"
    if dataset_object.is_name(place):
        return "a Python data set"
    path = Path(place)
    if not path.is_dir():
        match path.suffix.lower():
            case ".zip":
                return "a zip of class folders"
            case ending if ending in TABLES:
                return "a list"
            case ".7z" | ".rar" | ".arrow":
                raise UserError(f"{path} cannot be read in place; give a folder, unpacked or from save_to_disk")
    if any(split == "train" and (path / word).is_dir() for word, split in splits.WORDS.items()):
        return "Parquet or Arrow" if (path / "dataset_dict.json").is_file() else "folder"
    if (path / ilsvrc.TRAIN).is_file():
        return "ILSVRC"
    if place.endswith(".parquet") or (path.is_dir() and parquet.table_paths(path)):
        return "Parquet or Arrow"
    tar_files = tars.tar_paths(path) if path.is_dir() else sorted(path.absolute().parent.glob(path.name))
    if tar_files and not tar_files[0].is_dir():
        return _kind_of_tars(path, tar_files)
    if not path.is_dir():
        raise UserError(
            f"{path.absolute()} is not a folder, and there are no such files; data.source must be a folder with"
            " <class>/<images>, a zip, tar or Parquet file, a list with labels, or torchvision:NAME (docs/sources.md)"
        )
    return "folder"


def _kind_of_tars(path, tar_files):
    """Class tars hold images without labels; a single file is a tar of them, of class folders, or a shard."""
    members = tars.members(tars.whole(tar_files[0]))
    names = (name for name, _, _ in members if not junk_folder(name) and not name.rpartition("/")[2].startswith("._"))
    first = next(names, None)
    if first is None:
        raise UserError(f"{tar_files[0]} is an empty tar file")
    if not path.is_dir() and first.endswith(".tar"):
        return "class tars"
    names = [first, *(names if path.is_dir() else itertools.islice(names, LOOKED_AT))]
    images = {name.rpartition(".")[0] for name in names if has_image_name(name)}
    others = {name.rpartition(".")[0] for name in names if not has_image_name(name)}
    if images & others or any(name.lower().endswith((".cls", ".json")) for name in names):
        return "WebDataset"  # something belongs to an image: its label, or a caption
    if not path.is_dir():
        in_folders = images and all("/" in name.removeprefix("./") for name in images)
        return "a tar of class folders" if in_folders and len(tar_files) == 1 else "WebDataset"
    if all(splits.split_of(file.name, None) for file in tar_files):
        shown = first_few([file.name for file in tar_files])
        raise UserError(f"{path}: {shown} are called as shards of a split, but hold images without labels")
    return "class tars"


def output_name(place: str) -> str:
    """What files made of it are called: /path/imagenet -> imagenet, torchvision:CIFAR100,root=x -> cifar100."""
    if place.startswith(torchvision.PREFIX):
        return place.removeprefix(torchvision.PREFIX).partition(",")[0].lower()
    if dataset_object.is_name(place):
        return place.rpartition(":")[2].rpartition(".")[2]
    name = re.sub(r"\.(tar|parquet|zip|csv|tsv|jsonl)$", "", Path(place).absolute().name)
    return re.sub(r"[^\w .-]+", "", name).strip("-_. ") or "images"
