"""A folder in ImageFolder's layout: train/<class>/... and perhaps val/<class>/..."""

import functools
import os
from pathlib import Path

import numpy as np

from conversion.sources import synsets
from conversion.sources.source import Source, Split, Strings, read_file, some
from ffcv_ops.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


def image_folder(root: str, classes: str = synsets.AUTO) -> Source:
    """`root`/train/<class>/... and, if there, `root`/val/<class>/...: the order and the labels that torchvision's
    ImageFolder gives, or with a list of `classes` the labels of that. An item is a path below `root`, as its name is.

    Without a list, val/ must have the classes of train/. With one, both may lack some of its classes."""
    root = Path(root).absolute()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; data.source must be one with train/<class>/<images>")
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train/; data.source must be one with train/<class>/<images>")
    folders = {name: _class_folders(root / name) for name in ("train", "val") if (root / name).is_dir()}
    numbered = synsets.ordered(folders["train"], classes, str(root / "train"))
    if "val" in folders:
        if classes == synsets.AUTO:
            _require_same(folders["train"], folders["val"], root)
        else:
            synsets.ordered(folders["val"], classes, str(root / "val"))
    splits = {name: _split(root, name, found, numbered) for name, found in folders.items()}
    return Source(str(root), numbered, splits, functools.partial(read_file, root=str(root)))


def _class_folders(folder: Path) -> list[str]:
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        _refuse(error)
    if not classes:
        raise UserError(f"{folder} has no class folders; images belong in {folder}/<class>/")
    return classes


def _require_same(train, val, root):
    missing, unknown = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing or unknown:
        parts = [f"{name} lacks {some(names)}" for name, names in (("val/", missing), ("train/", unknown)) if names]
        raise UserError(f"{root}: train/ and val/ must have the same classes, but {' and '.join(parts)}")


def _split(root: Path, name: str, folders, classes) -> Split:
    names, counts = [], []
    for class_name in folders:
        found = Strings.of(os.path.relpath(path, root) for path in _images(root / name / class_name))
        if not len(found):
            raise UserError(f"{root / name / class_name} has no images; known by {' '.join(EXTENSIONS)}")
        names.append(found)
        counts.append(len(found))
    number = {class_name: k for k, class_name in enumerate(classes)}
    names = Strings.joined(names)
    return Split(names, names, np.repeat([number[folder] for folder in folders], counts))


def _images(folder: Path):
    """Paths of the images below `folder`, folder by folder in sorted order, links followed, but not from a folder back
    to one that holds it."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        here = Path(os.path.realpath(parent))
        folders[:] = [name for name in folders if not here.is_relative_to(os.path.realpath(here / name))]
        found.append((parent, files))
    for parent, files in sorted(found):
        for file in sorted(files):
            if file.lower().endswith(EXTENSIONS):
                if "\n" in file or "\n" in parent:
                    raise UserError(f"{os.path.join(parent, file)!r} has a line break in its name; rename it")
                yield os.path.join(parent, file)


def _refuse(error: OSError):
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")
