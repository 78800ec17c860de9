"""Where images come from: a folder in ImageFolder's layout -> the names, labels and classes of its splits."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffcv_ops.errors import BadInput

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


class Split(NamedTuple):
    """The samples of one .beton in their order: what the encoder takes, the names that lists and messages show, and
    int64 class numbers."""

    items: Sequence
    names: Sequence[str]
    labels: np.ndarray


def read_file(item: str, root: str = "") -> bytes:
    """The image file at the path `item` below `root`."""
    with open(os.path.join(root, item), "rb") as file:
        return file.read()


class Source(NamedTuple):
    """A data set before its conversion: where it is from, its class names by number, its splits by name, and what
    makes of an item the bytes of an image file, or RGB pixels: uint8 (height, width, 3). Workers call it, so it and the
    items must pickle."""

    origin: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    read: Callable = read_file


def image_folder(root: str) -> Source:
    """`root`/train/<class>/... and, if there, `root`/val/<class>/...: the order and the labels that torchvision's
    ImageFolder gives. An item is a path below `root`, as its name is."""
    root = Path(root).absolute()
    if not root.is_dir():
        raise BadInput(f"{root} is not a folder; data.source must be one with train/<class>/<images>")
    if not (root / "train").is_dir():
        raise BadInput(f"{root} has no folder train/; data.source must be one with train/<class>/<images>")
    classes = _classes(root / "train")
    names = ["train"]
    if (root / "val").is_dir():
        _require_same(classes, _classes(root / "val"), root)
        names.append("val")
    splits = {name: _split(root, name, classes) for name in names}
    return Source(str(root), classes, splits, functools.partial(read_file, root=str(root)))


def _classes(folder: Path) -> tuple[str, ...]:
    try:
        classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    except OSError as error:
        _refuse(error)
    if not classes:
        raise BadInput(f"{folder} has no class folders; images belong in {folder}/<class>/")
    return classes


def _require_same(train, val, root):
    missing, unknown = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing or unknown:
        parts = [f"{name} lacks {_some(names)}" for name, names in (("val/", missing), ("train/", unknown)) if names]
        raise BadInput(f"{root}: train/ and val/ must have the same classes, but {' and '.join(parts)}")


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _split(root: Path, name: str, classes) -> Split:
    names, counts = [], []
    for class_name in classes:
        found = [os.path.relpath(path, root) for path in _images(root / name / class_name)]
        if not found:
            raise BadInput(f"{root / name / class_name} has no images; known by {' '.join(EXTENSIONS)}")
        names += found
        counts.append(len(found))
    return Split(names, names, np.repeat(np.arange(len(classes)), counts))


def _images(folder: Path):
    """Paths of the images below `folder`, folder by folder in sorted order, links followed."""
    for parent, _, files in sorted(os.walk(folder, followlinks=True, onerror=_refuse)):
        for file in sorted(files):
            if file.lower().endswith(EXTENSIONS):
                if "\n" in file or "\n" in parent:
                    raise BadInput(f"{os.path.join(parent, file)!r} has a line break in its name; rename it")
                yield os.path.join(parent, file)


def _refuse(error: OSError):
    raise BadInput(f"{error.filename} cannot be read: {error.strerror}")
