"""Any classification data set of torchvision: `torchvision:CIFAR100`, `torchvision:Flowers102,root=/data`.

Words after the name are arguments of its constructor. Order, labels and class names are torchvision's. Its splits
become train, val and test; where there is no val, test is called so. Where torchvision opens image files, their bytes
are read; where it holds arrays, the pixels.
"""

import ast
import functools
import inspect
import operator
import os
import sys

import numpy as np

from conversion.progress import progress
from conversion.rgb import to_rgb
from conversion.sources import synsets
from conversion.sources.source import Lazy, Source, Split, Strings, one_line, read_file
from ffcv_ops.errors import UserError

PREFIX = "torchvision:"
ROOT = "data/torchvision"
SPLITS = {  # ours -> torchvision's words for it; the first that a data set knows counts
    "train": ("train", "trainval", "train-standard", "2021_train"),
    "val": ("val", "valid", "2021_valid"),
    "test": ("test",),
}
CLASSES = ("wnids", "classes", "categories", "all_categories")  # where a data set may keep its class names


class Numbers(Lazy):
    """Items of a data set that every worker makes for itself: (name, arguments, number)."""

    def __init__(self, name: str, arguments: tuple, count: int):
        self.name, self.arguments, self.count = name, arguments, count

    def __len__(self):
        return self.count

    def _make(self, number):
        return self.name, self.arguments, number


def torchvision(source: str, classes: str) -> Source:
    name, *words = source.removeprefix(PREFIX).split(",")
    cls, given = _class(name), _arguments(source, words)
    parameters = _parameters(cls)
    if "root" in parameters:
        given = {"root": ROOT, **given}
    splits = dict(_splits(name, cls, given, parameters))
    if not splits:
        raise UserError(f"{source}: torchvision names no split of it as expected; add split=...")
    if "test" in splits and "val" not in splits:
        splits["val"] = splits.pop("test")
    root = os.path.abspath(given.get("root", "."))
    files = "loader" in parameters
    done = {split: _split(source, split, *made, root if files else None) for split, made in splits.items()}
    count = 1 + max(int(split.labels.max()) for split in done.values())
    known = _class_names(next(iter(splits.values()))[1], count)
    numbered = synsets.named(count, known, classes, source)
    if files:
        return Source(root, numbered, done, functools.partial(read_file, root=root))
    return Source(source, numbered, done, read_pixels)


def read_pixels(item) -> np.ndarray:
    name, arguments, number = item
    image = _dataset(name, arguments)[number][0]
    return np.asarray(to_rgb(image))


@functools.lru_cache(2)
def _dataset(name, arguments):
    return _class(name)(**dict(arguments))


def _class(name):
    from torchvision import datasets  # takes seconds

    cls = getattr(datasets, name, None) if name in datasets.__all__ else None
    if not inspect.isclass(cls) or cls is datasets.VisionDataset:
        raise UserError(f"torchvision has no data set {one_line(name)}; data.source=torchvision:CIFAR100 would be one")
    return cls


def _parameters(cls) -> set[str]:
    """Of the constructor, and of those to which it hands on what it does not know."""
    names = set()
    for base in cls.__mro__:
        own = inspect.signature(base.__init__).parameters
        names |= set(own)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return names


def _arguments(source, words):
    given = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{source}: after the name come arguments such as root=/data, not {one_line(word)!r}")
        try:
            given[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[key] = text
        if isinstance(given[key], list | dict | set):
            raise UserError(f"{source}: {one_line(word)} can only be a word, a number or a tuple such as (1,2)")
    return given


def _splits(name, cls, given, parameters):
    """Yields (split, (arguments, data set)) of those that there are."""
    if "train" in parameters and "train" not in given:
        candidates = [("train", "train", True), ("test", "train", False)]
    else:
        key = next((key for key in ("split", "version") if key in parameters and key not in given), None)
        if key is None:
            candidates = [("train", None, None)]
        else:
            candidates = [(split, key, word) for split, words in SPLITS.items() for word in words]
    found = set()
    for split, key, word in candidates:
        if split in found:
            continue
        arguments = given if key is None else {**given, key: word}
        made = _made(name, cls, arguments, key, parameters)
        if made is not None:
            found.add(split)
            yield split, (tuple(arguments.items()), made)


def _made(name, cls, arguments, key, parameters):
    """The data set, downloaded if it is not there; None if it knows no such split."""
    arguments = dict(arguments)
    if "loader" in parameters:
        arguments["loader"] = os.fspath  # of a sample we want the path, not the pixels
    try:
        try:
            return cls(**arguments)
        except (RuntimeError, FileNotFoundError) as missing:
            if "download" not in parameters:
                raise
            print(f"{name} is not in {arguments['root']} ({one_line(str(missing))[:80]}): downloading", file=sys.stderr)
            return cls(**arguments, download=True)
    except ValueError as error:
        if key and f"argument {key}" in str(error):
            return None
        _refuse(name, error)
    except (RuntimeError, OSError, TypeError, ImportError) as error:
        _refuse(name, error)


def _refuse(name, error):
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"torchvision:{name} cannot be had: {one_line(reason)}") from None


def _split(source, split, arguments, dataset, root) -> Split:
    """root: of the files whose paths the data set gives; None where it gives pixels."""
    labels, names = np.empty(len(dataset), np.int64), []
    with progress(f"{split}, reading labels", len(dataset)) as one_more:
        for number in range(len(dataset)):
            sample = dataset[number]
            try:
                labels[number] = operator.index(sample[1])
            except (TypeError, IndexError):
                raise UserError(f"{source}: a sample of {split} has no single class number") from None
            if root is not None:
                names.append(os.path.relpath(sample[0], root))
            one_more()
    if not len(labels) or labels.min() < 0:
        raise UserError(f"{source}: {split} is empty or has images without a label")
    if root is None:
        name = source.removeprefix(PREFIX).partition(",")[0]
        names = Strings.of(f"{split}/{number}" for number in range(len(labels)))
        return Split(Numbers(name, arguments, len(labels)), names, labels)
    if bad := [name for name in names if one_line(name) != name]:
        raise UserError(f"{source}: {bad[0]!r} has a line break in its name; rename it")
    names = Strings.of(names)
    return Split(names, names, labels)


def _class_names(dataset, count):
    for place in CLASSES:
        names = getattr(dataset, place, None)
        if isinstance(names, list | tuple) and len(names) >= count:
            return [name if isinstance(name, str) else name[0] for name in names]
    return None
