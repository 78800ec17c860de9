"""Any data set in Python by its name, `module:name`: one that gives (image, label) by number, or a function that makes
one, with `split=` or without arguments.

An image is a Pillow image, an array, the path of an image file or its bytes; a label is a class number. Class names are
those of its attribute `classes`. Every worker makes the data set for itself.
"""

import functools
import importlib
import inspect
import operator
import os
import re
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from conversion.encode import ReadError
from conversion.progress import progress
from conversion.sources import synsets
from conversion.sources.source import Made, Source, Split, Strings, read_file
from conversion.sources.splits import ALL, SPLITS, WORDS
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.modes import to_rgb, upright

CLASSES = ("wnids", "classes", "categories", "all_categories")  # where a data set may keep its class names


def items_of(name: str, arguments: tuple, count: int) -> Made:
    """Items of a data set that every worker makes for itself: (module:name, arguments, number)."""
    return Made(count, lambda number: (name, arguments, number))


def is_name(place: str) -> bool:
    """Whether it is written as module:name and is no file."""
    return bool(re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", place)) and not os.path.exists(place)


def dataset_object(place: str, classes: str) -> Source:
    splits, known = {}, None
    for split, arguments in _splits(place).items():
        dataset = _made(place, arguments)
        labels, names = walked(place, split, dataset)
        splits[split] = Split(items_of(place, arguments, len(labels)), names, labels)
        known = known or dataset
    count = synsets.count_of(splits.values(), place)
    return Source(place, synsets.named(count, class_names(known, count), classes, place), splits, read_item)


def read_item(item) -> bytes | np.ndarray:
    """The image of one of `items_of`, as `Source.read` gives it."""
    name, arguments, number = item
    image = _sample(_made(name, arguments), number)[0]
    if isinstance(image, str | os.PathLike):
        return read_file(os.fspath(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim < 2 or image.shape[2:] not in ((), (3,), (4,)):
            raise UserError(f"is a {image.dtype} array of shape {image.shape}; it must be uint8 (height, width, 3)")
        image = Image.fromarray(image)
    if isinstance(image, bytes):
        return image
    if not isinstance(image, Image.Image):
        raise UserError(f"is a {type(image).__name__}, not a Pillow image, uint8 array, path or the bytes of a file")
    return np.asarray(to_rgb(upright(image, image)))


def walked(place: str, split: str, dataset, root: str | None = None) -> tuple[np.ndarray, Strings]:
    """The labels of a data set's samples (int64), and their names: where it gives paths, these, below `root`."""
    labels, names = np.empty(len(dataset), np.int64), []
    with progress(f"{split}, reading labels", len(dataset)) as advance:
        for number in range(len(dataset)):
            try:
                sample = _sample(dataset, number)
                labels[number] = operator.index(sample[1])
            except UserError as error:
                raise UserError(f"{place}: sample {number} of {split}: {error}") from None
            except (TypeError, IndexError, KeyError):
                raise UserError(
                    f"{place}: sample {number} of {split} is not (image, class number): it has no single class number"
                ) from None
            is_path = isinstance(sample[0], str | os.PathLike)
            names.append(os.path.relpath(sample[0], root or ".") if is_path else f"{split}/{number}")
            advance()
    if not len(labels) or labels.min() < 0:
        raise UserError(f"{place}: {split} is empty or has images without a label")
    if bad := [name for name in names if name.splitlines() != [name]]:
        raise UserError(f"{place}: {one_line(bad[0])} has a line break in its name; rename it")
    return labels, Strings.of(names)


def class_names(dataset, count: int) -> Sequence[str] | None:
    for place in CLASSES:
        names = getattr(dataset, place, None)
        if isinstance(names, list | tuple) and len(names) >= count:
            return [name if isinstance(name, str) else name[0] for name in names]
    return None


def _splits(place) -> dict[str, tuple]:
    """{split: arguments of the function for it}."""
    target = _named(place)
    if not _is_function(target) or "split" not in inspect.signature(target).parameters:
        return {ALL: ()}
    found, reasons = {}, {}
    for word, split in WORDS.items():
        if split not in found:
            try:
                _made(place, (("split", word),))
                found[split] = (("split", word),)
            except UserError as reason:
                reasons.setdefault(split, reason)
    if "train" not in found:
        raise reasons["train"]
    for split in set(reasons) - set(found):
        print(f"there is no {split}: {reasons[split]}", file=sys.stderr)
    return {split: found[split] for split in SPLITS if split in found}


def _sample(dataset, number):
    """One of its samples; whatever goes wrong in code that is not ours is one line."""
    try:
        return dataset[number]
    except Exception as error:
        kind = ReadError if isinstance(error, OSError) and error.errno else UserError
        raise kind(_said(error)) from None


def _said(error):
    return f"{type(error).__name__}: {one_line(str(error))}"


@functools.lru_cache(3)
def _made(name, arguments):
    """The data set, of code that is not ours either."""
    target = _named(name)
    try:
        dataset = target(**dict(arguments)) if _is_function(target) else target
        len(dataset), dataset.__getitem__
    except Exception as error:
        words = ", ".join(f"{key}={value!r}" for key, value in arguments)
        raise UserError(f"{name}({words}): {_said(error)}") from None
    return dataset


def _is_function(target):
    return callable(target) and not hasattr(type(target), "__getitem__")


def _named(place):
    module, _, name = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except Exception as error:
        raise UserError(f"{place}: {_said(error)}") from None
