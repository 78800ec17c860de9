"""A folder in ImageFolder's layout: train/<class>/... and perhaps val/<class>/..."""

import functools
import os
import sys
from pathlib import Path

import numpy as np

from conversion import formats
from conversion.encode import ReadError
from conversion.sources import synsets
from conversion.sources.selection import (
    JUNK_FOLDERS,
    NO_CLASS,
    NO_IMAGE,
    LeftOut,
    has_image_name,
    is_image_file,
)
from conversion.sources.source import Source, Split, Strings, first_few, read_file
from ffcv_ops.errors import UserError, one_line


def image_folder(root: str, classes: str = synsets.AUTO) -> Source:
    """`root`/train/<class>/... and, if there, `root`/val/<class>/...: the order and the labels of torchvision's
    ImageFolder, or with a list of `classes` the labels of that. An item is a path below `root`, and so is its name.

    Without a list, val/ must have the classes of train/. With one, both may lack some of its classes."""
    root = Path(root).absolute()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; data.source must be one with train/<class>/<images>")
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train/; data.source must be one with train/<class>/<images>")
    if os.path.lexists(root / "val") and not (root / "val").is_dir():
        raise UserError(f"{root / 'val'} is not a folder, and no link to one; take it away, or mend it")
    left_out = {name: LeftOut() for name in ("train", "val") if (root / name).is_dir()}
    folders = {name: _class_folders(root / name, left_out[name]) for name in left_out}
    numbered = synsets.ordered(folders["train"], classes, str(root / "train"))
    if "val" in folders:
        if classes in synsets.BY_NAME:
            _require_same(folders["train"], folders["val"], root)
        else:
            synsets.ordered(folders["val"], classes, str(root / "val"))
    splits = {name: _split(root / name, found, numbered, left_out[name]) for name, found in folders.items()}
    return Source(str(root), numbered, splits, functools.partial(read_file, root=str(root)))


def _class_folders(folder: Path, left_out: LeftOut) -> list[str]:
    classes = []
    try:
        for entry in os.scandir(folder):
            if not entry.is_dir():
                left_out.add(NO_CLASS, entry.name)
            elif entry.name in JUNK_FOLDERS:
                left_out.add("folder of another program", entry.name)
            else:
                classes.append(entry.name)
    except OSError as error:
        _refuse(error)
    if not classes:
        raise UserError(f"{folder} has no class folders; images belong in {folder}/<class>/")
    return sorted(classes)


def _require_same(train, val, root):
    synsets.refuse_two_forms([*train, *val], str(root))
    missing, unknown = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing or unknown:
        pairs = (("val/", missing), ("train/", unknown))
        faults = [f"{name} lacks {first_few(names)}" for name, names in pairs if names]
        raise UserError(f"{root}: train/ and val/ must have the same classes, but {' and '.join(faults)}")


def _split(folder: Path, class_folders, classes, left_out) -> Split:
    names, counts = [], []
    for class_name in class_folders:
        found = Strings.of(os.path.relpath(path, folder.parent) for path in image_paths(folder / class_name, left_out))
        if not len(found):
            raise UserError(f"{folder / class_name} has no images (known formats: {formats.NAMES})")
        names.append(found)
        counts.append(len(found))
    if left_out.counts:
        print(f"{one_line(str(folder))}: left out: {left_out}", file=sys.stderr)
    number = {class_name: k for k, class_name in enumerate(classes)}
    names = Strings.joined(names)
    return Split(names, names, np.repeat([number[name] for name in class_folders], counts), left_out.counts)


def image_paths(folder: Path, left_out: LeftOut):
    """Paths of the images below `folder`, folder by folder in sorted order, links followed, but not from a folder back
    to one that holds it."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        here = Path(os.path.realpath(parent))
        for name in JUNK_FOLDERS.intersection(folders):
            left_out.add("folder of another program", os.path.join(parent, name))
        folders[:] = [
            name
            for name in folders
            if name not in JUNK_FOLDERS and not here.is_relative_to(os.path.realpath(here / name))
        ]
        found.append((parent, files))
    for parent, files in sorted(found):
        for file in sorted(files):
            path = os.path.join(parent, file)
            if not has_image_name(file) and not is_image_file(path):
                left_out.add(NO_IMAGE, path)
                continue
            if path.splitlines() != [path]:  # lists of files have a line for each
                raise UserError(f"{one_line(path)} has a line break in its name; rename it")
            yield path


def _refuse(error: OSError):
    raise ReadError(f"{error.filename} cannot be read: {error.strerror}")
