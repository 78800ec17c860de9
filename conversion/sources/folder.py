"""Class folders, on the disk or in an archive: <class>/... by themselves, or in train/ and perhaps val/ and test/.

Order and labels are those that torchvision's ImageFolder gives.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conversion import formats
from conversion.encode import ReadError
from conversion.sources import synsets
from conversion.sources.selection import JUNK_FOLDERS, NO_IMAGE, LeftOut, has_image_name, is_image_file
from conversion.sources.source import Source, Split, Strings, first_few, read_file
from conversion.sources.splits import ALL, WORDS, by_split, split_of
from ffcv_ops.errors import UserError, one_line

TABLES = (".csv", ".tsv", ".jsonl")


class Tree(NamedTuple):
    """A folder, or an archive of one. Places in it are paths below `origin`, "" is itself.

    entries: of a place, the sorted names of its folders and of its files. images: the paths of the images below a
    place in their order; what else is there goes into the LeftOut. items: what `read` takes, of such paths."""

    origin: str
    entries: Callable[[str], tuple[list[str], list[str]]]
    images: Callable[[str, LeftOut], Iterator[str]]
    items: Callable[[Strings], Sequence]
    read: Callable


def image_folder(root: str, classes: str = synsets.AUTO) -> Source:
    """`class_folders` of a folder on the disk. An item is a path below `root`, and so is its name."""
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder; data.source must be one with <class>/<images>")

    def images(place, left_out):
        return (os.path.relpath(path, root) for path in image_paths(os.path.join(root, place), left_out))

    read = functools.partial(read_file, root=root)
    return class_folders(Tree(root, functools.partial(_entries, root), images, lambda names: names, read), classes)


def class_folders(tree: Tree, classes: str) -> Source:
    """Splits `train` and, where they are there, `val` and `test`; or ALL where class folders lie at the top. The labels
    are ImageFolder's, or those of a list of `classes`.

    Without a list, all splits must have the same classes. With one, each may lack some of its classes."""
    top, places = _split_places(tree)
    left_out = {split: LeftOut() for split in places}
    found = {split: _class_names(tree, place, left_out[split]) for split, place in places.items()}
    if not found.get("test", True):
        print(f"{one_line(_shown(tree, places['test']))} is left out: it has no class folders", file=sys.stderr)
        del found["test"]
    first, *others = found
    numbered = synsets.ordered(found[first], classes, _shown(tree, places[first]))
    for split in others:
        if classes in synsets.BY_NAME:
            _require_same(tree, {place: found[part] for part, place in places.items() if part in (first, split)})
        else:
            synsets.ordered(found[split], classes, _shown(tree, places[split]))
    splits = {split: _split(tree, places[split], names, numbered, left_out[split]) for split, names in found.items()}
    if top:  # names are those that the folders inside would give by themselves
        splits = {
            split: part._replace(names=Strings.of(name[len(top) + 1 :] for name in part.names))
            for split, part in splits.items()
        }
    return Source(_shown(tree, top), numbered, splits, tree.read)


def _split_places(tree: Tree, top: str = "") -> tuple[str, dict[str, str]]:
    """The place of the whole, and {split: the place whose folders are its classes}."""
    place, (folders, files) = _shown(tree, top), tree.entries(top)
    words = [name for name in folders if name.lower() in WORDS]
    classes = [name for name in folders if name not in words and name not in JUNK_FOLDERS]
    splits = by_split(words, place)
    if "train" in splits and (not classes or tree.entries(os.path.join(top, splits["train"]))[0]):
        if broken := [name for name in files if name.lower() in WORDS]:
            raise UserError(
                f"{os.path.join(place, broken[0])} is not a folder, and no link to one; take it away, or mend it"
            )
        if classes:
            print(f"{one_line(place)}: only its splits are read, not {first_few(classes)}", file=sys.stderr)
        return top, {split: os.path.join(top, name) for split, name in splits.items()}
    if splits and classes:
        raise UserError(
            f"{place} has class folders ({first_few(classes)}) beside {words[0]}/, which may be a class or a split; put"
            f" the classes into {place}/train/, or rename {words[0]}/{_table(tree, top)}"
        )
    if splits:
        raise UserError(f"{place} has {words[0]}/, but no folder train/; images belong in {place}/train/<class>/")
    if len(classes) == 1:
        inner = os.path.join(top, classes[0])
        if tree.entries(inner)[0] and not any(map(has_image_name, tree.entries(inner)[1])):
            return _split_places(tree, inner)  # one folder around all, as archives have it
    meant = {split_of(name, None) for name in classes} - {None}
    hint = _table(tree, top, *(os.path.join(top, name) for name in classes[:1]))
    if len(meant) > 1 or (len(classes) == 1 and hint):
        what = "called as splits are" if len(meant) > 1 else "one folder"
        raise UserError(
            f"{place} holds {first_few(classes)}, {what}, and no class folders; images belong in"
            f" {place}/train/<class>/{hint}"
        )
    return top, {ALL: top}


def _table(tree, *places) -> str:
    """What to do about a table of classes, where one lies in one of the places."""
    for place in places:
        for name in tree.entries(place)[1]:
            if name.lower().endswith(TABLES):
                table = os.path.join(_shown(tree, place), name)
                unpacked = os.path.isdir(tree.origin)
                return f"; or give a table of their classes, {'' if unpacked else 'unpacked: '}--data.source={table}"
    return ""


def _class_names(tree, place, left_out) -> list[str]:
    """The class folders at the place; none only where it is a test split, which often has no labels."""
    folders, files = tree.entries(place)
    for name in files:
        left_out.add("in no class folder", name)
    for name in JUNK_FOLDERS.intersection(folders):
        left_out.add("folder of another program", name)
    classes = [name for name in folders if name not in JUNK_FOLDERS]
    if not classes and WORDS.get(os.path.basename(place).lower()) != "test":
        shown, hint = _shown(tree, place), _table(tree, place, os.path.dirname(place))
        raise UserError(f"{shown} has no class folders; images belong in {shown}/<class>/{hint}")
    return classes


def _require_same(tree, found):
    (train, names), (val, other_names) = found.items()
    synsets.refuse_two_forms([*names, *other_names], tree.origin)
    missing, unknown = sorted(set(names) - set(other_names)), sorted(set(other_names) - set(names))
    if missing or unknown:
        pairs = ((f"{val}/", missing), (f"{train}/", unknown))
        faults = [f"{name} lacks {first_few(names)}" for name, names in pairs if names]
        raise UserError(f"{tree.origin}: {train}/ and {val}/ must have the same classes, but {' and '.join(faults)}")


def _split(tree, place, class_names, classes, left_out) -> Split:
    names, counts = [], []
    for class_name in class_names:
        folder = os.path.join(place, class_name)
        found = Strings.of(tree.images(folder, left_out))
        if not len(found):
            raise UserError(f"{_shown(tree, folder)} has no images (known formats: {formats.NAMES})")
        names.append(found)
        counts.append(len(found))
    left_out.tell(one_line(_shown(tree, place)))
    number = {class_name: k for k, class_name in enumerate(classes)}
    names = Strings.joined(names)
    labels = np.repeat([number[name] for name in class_names], counts)
    return Split(tree.items(names), names, labels, left_out.counts)


def _shown(tree, place):
    return os.path.join(tree.origin, place).rstrip("/")


def _entries(root, place):
    folders, files = [], []
    try:
        for entry in os.scandir(os.path.join(root, place)):
            (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        _refuse(error)
    return sorted(folders), sorted(files)


def image_paths(folder: str | Path, left_out: LeftOut) -> Iterator[str]:
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
