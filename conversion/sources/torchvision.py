"""Any classification data set of torchvision: `torchvision:CIFAR100`, `torchvision:Flowers102,root=/data`.

Words after the name are arguments of its constructor. Order, labels and class names are torchvision's. Its splits
become train, val and test. Where torchvision opens image files, their bytes are read; where it holds arrays, the
pixels.
"""

import ast
import functools
import inspect
import os
import sys

from conversion.sources import synsets
from conversion.sources.dataset_object import class_names, items_of, read_item, walked
from conversion.sources.source import Source, Split, read_file
from ffcv_ops.errors import UserError, one_line

PREFIX = "torchvision:"
ROOT = "data/torchvision"
SPLITS = {  # ours -> torchvision's words for it; the first that a data set knows counts
    "train": ("train", "trainval", "train-standard", "2021_train"),
    "val": ("val", "valid", "2021_valid"),
    "test": ("test",),
}


def torchvision(source: str, classes: str) -> Source:
    name, *words = source.removeprefix(PREFIX).split(",")
    cls, arguments = _class(name), _arguments(source, words)
    parameters = _parameters(cls)
    if "root" in parameters:
        arguments = {**arguments, "root": os.path.expanduser(str(arguments.get("root", ROOT)))}
    datasets = dict(_datasets(name, cls, arguments, parameters))
    if not datasets:
        raise UserError(f"{source}: torchvision names no split of it as expected; add split=...")
    root = os.path.abspath(arguments.get("root", "."))
    has_files = "loader" in parameters
    splits = {name: _split(source, name, *pair, root if has_files else None) for name, pair in datasets.items()}
    count = synsets.count_of(splits.values(), source)
    own_names = class_names(next(iter(datasets.values()))[1], count)
    numbered = synsets.named(count, own_names, classes, source)
    if has_files:
        return Source(root, numbered, splits, functools.partial(read_file, root=root))
    return Source(source, numbered, splits, read_item)


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
    key = next((key for key in ("train", "split", "version") if key in parameters and key not in arguments), None)
    candidates = SPLITS if key else {"train": (None,)}
    if key == "train":
        candidates = {"train": (True,), "test": (False,)}
    for split, words in candidates.items():
        for word in words:
            split_arguments = arguments if key is None else {**arguments, key: word}
            dataset = _dataset_of(name, cls, split_arguments, key, parameters)
            if dataset is not None:
                yield split, (tuple(split_arguments.items()), dataset)
                break


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
    labels, names = walked(source, split, dataset, root)
    if root is not None:
        return Split(names, names, labels)
    name = source.removeprefix(PREFIX).partition(",")[0]
    return Split(items_of(f"torchvision.datasets:{name}", arguments, len(labels)), names, labels)
