"""Where images come from: `data.source` -> a Source, with the items, names and labels of its splits."""

import re
import sys
from pathlib import Path

import numpy as np

from conversion.sources import ilsvrc, parquet, synsets, tars, torchvision, webdataset
from conversion.sources.folder import image_folder
from conversion.sources.selection import has_image_name, junk_folder
from conversion.sources.source import Source, Split, first_few, read_file
from ffcv_ops.errors import UserError, one_line

__all__ = ["Source", "Split", "image_folder", "open_source", "output_name", "read_file"]


def open_source(place: str, *, classes: str = synsets.AUTO, label: str = "auto", workers: int = 1) -> Source:
    """The data set at `place`, recognized by what lies there: `torchvision:NAME`, a folder of images, ILSVRC's or other
    class tars, WebDataset shards, Parquet files. docs/sources.md describes each.

    classes: auto, a list's name or a file (synsets.py). label: where WebDataset and Parquet keep it. workers: processes
    that read the headers of tar files. What the place was taken for, and which classes have no images in train, is
    printed on standard error."""
    kind = _kind_of(place)
    if label != "auto" and kind not in ("WebDataset", "Parquet"):
        raise UserError(f"data.label is for WebDataset and Parquet; {place} tells its labels itself")
    match kind:
        case "torchvision":
            source = torchvision.torchvision(place, classes)
        case "ILSVRC":
            source = ilsvrc.ilsvrc(place, classes, workers)
        case "class tars":
            source = ilsvrc.class_tars(place, classes, workers)
        case "WebDataset":
            source = webdataset.webdataset(place, classes, label, workers)
        case "Parquet":
            source = parquet.parquet(place, classes, label)
        case "folder":
            source = image_folder(place, classes)
    if kind not in ("folder", "torchvision"):
        sizes = ", ".join(f"{name} {len(split.items):,}" for name, split in source.splits.items())
        classes = f"{len(source.classes):,} classes ({first_few(source.classes)})"
        print(f"{one_line(place)} is read as {kind}: {sizes} images, {classes}", file=sys.stderr)
    if "train" in source.splits:
        counts = np.bincount(source.splits["train"].labels, minlength=len(source.classes))
        if empty := [name for name, count in zip(source.classes, counts, strict=True) if not count]:
            share = f"{len(empty):,} of {len(source.classes):,} classes"
            print(f"{share} have no images in train: {first_few(empty)}", file=sys.stderr)
    return source


def _kind_of(place: str) -> str:
    if place.startswith(torchvision.PREFIX):
        return "torchvision"
    path = Path(place)
    if path.is_file() and path.suffix.lower() in (".zip", ".7z", ".rar"):
        raise UserError(f"{path} is an archive that cannot be read in place; unpack it and give the folder")
    if (path / "train").is_dir():
        return "folder"
    if (path / ilsvrc.TRAIN).is_file():
        return "ILSVRC"
    if place.endswith(".parquet") or (path.is_dir() and parquet.parquet_paths(path)):
        return "Parquet"
    tar_files = tars.tar_paths(path) if path.is_dir() else sorted(path.absolute().parent.glob(path.name))
    if tar_files and not tar_files[0].is_dir():
        return "class tars" if _of_classes(path, tar_files) else "WebDataset"
    if not path.is_dir():
        raise UserError(
            f"{path.absolute()} is not a folder, and there are no such files; data.source must be a folder with"
            " train/<class>/<images>, tar or Parquet files, or torchvision:NAME (docs/sources.md)"
        )
    return "folder"


def _of_classes(path, tar_files):
    """Whether these are class tars, which hold images without labels. A single file would be a tar of them."""
    members = tars.members(tars.whole(tar_files[0]))
    names = (name for name, _, _ in members if not junk_folder(name) and not name.rpartition("/")[2].startswith("._"))
    first = next(names, None)
    if first is None:
        raise UserError(f"{tar_files[0]} is an empty tar file")
    if not path.is_dir():
        return first.endswith(".tar")
    names = [first, *names]
    images = {_until_last_dot(name) for name in names if has_image_name(name)}
    others = {_until_last_dot(name) for name in names if not has_image_name(name)}
    if images & others or any(name.lower().endswith((".cls", ".json")) for name in names):
        return False  # something belongs to an image: its label, or a caption
    if all(webdataset.split_of(file.name, None) for file in tar_files):
        shown = first_few([file.name for file in tar_files])
        raise UserError(f"{path}: {shown} are called as shards of a split, but hold images without labels")
    return True


def _until_last_dot(name):
    return name.rpartition(".")[0]


def output_name(place: str) -> str:
    """What files made of it are called: /path/imagenet -> imagenet, torchvision:CIFAR100,root=x -> cifar100."""
    if place.startswith(torchvision.PREFIX):
        return place.removeprefix(torchvision.PREFIX).partition(",")[0].lower()
    name = Path(place).absolute().name.removesuffix(".tar").removesuffix(".parquet")
    return re.sub(r"[^\w .-]+", "", name).strip("-_. ") or "images"
