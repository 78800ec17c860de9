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
from conversion.sources import synsets
from conversion.sources.source import Lazy, Source, Split, Strings, read_file
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.modes import to_rgb

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
    cls, arguments = _class(name), _arguments(source, words)
    parameters = _parameters(cls)
    if "root" in parameters:
        arguments = {**arguments, "root": os.path.expanduser(str(arguments.get("root", ROOT)))}
    datasets = dict(_datasets(name, cls, arguments, parameters))
    if not datasets:
        raise UserError(f"{source}: torchvision names no split of it as expected; add split=...")
    if "test" in datasets and "val" not in datasets:
        datasets["val"] = datasets.pop("test")
    root = os.path.abspath(arguments.get("root", "."))
    has_files = "loader" in parameters
    splits = {name: _split(source, name, *pair, root if has_files else None) for name, pair in datasets.items()}
    count = synsets.count_of(splits.values(), source)
    own_names = _class_names(next(iter(datasets.values()))[1], count)
    numbered = synsets.named(count, own_names, classes, source)
    if has_files:
        return Source(root, numbered, splits, functools.partial(read_file, root=root))
    return Source(source, numbered, splits, read_pixels)


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
        signature = inspect.signature(base.__init__).parameters
        names |= set(signature)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature.values()):
            break
    return names


def _arguments(source, words):
    arguments = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{source}: after the name come arguments such as root=/data, not {one_line(word)!r}")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key] = text
        if isinstance(arguments[key], list | dict | set):
            raise UserError(f"{source}: {one_line(word)} can only be a word, a number or a tuple such as (1,2)")
    return arguments


def _datasets(name, cls, arguments, parameters):
    """Yields (split, (arguments, data set)) of those that there are."""
    if "train" in parameters and "train" not in arguments:
        candidates = [("train", "train", True), ("test", "train", False)]
    else:
        key = next((key for key in ("split", "version") if key in parameters and key not in arguments), None)
        if key is None:
            candidates = [("train", None, None)]
        else:
            candidates = [(split, key, word) for split, words in SPLITS.items() for word in words]
    found = set()
    for split, key, word in candidates:
        if split in found:
            continue
        split_arguments = arguments if key is None else {**arguments, key: word}
        dataset = _dataset_of(name, cls, split_arguments, key, parameters)
        if dataset is not None:
            found.add(split)
            yield split, (tuple(split_arguments.items()), dataset)


def _dataset_of(name, cls, arguments, key, parameters):
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
            print(f"{name} is not in {arguments['root']} ({one_line(str(missing), 80)}): downloading", file=sys.stderr)
            return cls(**arguments, download=True)
    except ValueError as error:
        if key and f"argument {key}" in str(error):
            return None
        _refuse(name, error)
    except (RuntimeError, OSError, TypeError, ImportError) as error:
        _refuse(name, error)


def _refuse(name, error):
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"torchvision:{name} is not available: {one_line(reason)}") from None


def _split(source, split, arguments, dataset, root) -> Split:
    """root: of the files whose paths the data set gives; None where it gives pixels."""
    labels, names = np.empty(len(dataset), np.int64), []
    with progress(f"{split}, reading labels", len(dataset)) as advance:
        for number in range(len(dataset)):
            sample = dataset[number]
            try:
                labels[number] = operator.index(sample[1])
            except (TypeError, IndexError):
                raise UserError(f"{source}: a sample of {split} has no single class number") from None
            if root is not None:
                names.append(os.path.relpath(sample[0], root))
            advance()
    if not len(labels) or labels.min() < 0:
        raise UserError(f"{source}: {split} is empty or has images without a label")
    if root is None:
        name = source.removeprefix(PREFIX).partition(",")[0]
        names = Strings.of(f"{split}/{number}" for number in range(len(labels)))
        return Split(Numbers(name, arguments, len(labels)), names, labels)
    if bad := [name for name in names if name.splitlines() != [name]]:
        raise UserError(f"{source}: {one_line(bad[0])} has a line break in its name; rename it")
    names = Strings.of(names)
    return Split(names, names, labels)


def _class_names(dataset, count):
    for place in CLASSES:
        names = getattr(dataset, place, None)
        if isinstance(names, list | tuple) and len(names) >= count:
            return [name if isinstance(name, str) else name[0] for name in names]
    return None
