"""The data sets of a run: which .beton files its stages read, and how many classes the head for them has.

In: a run. Out: {the word of `stage.data`: DataSet}.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config.recipe import Recipe
from ffcv_ops.errors import UserError
from ffcv_ops.storage.info import DatasetInfo, exists

# (images to train on, classes) by the name that our recipes give the file, for plans made where it is not.
PUBLIC = {
    "imagenet": (1_281_167, 1_000),
    "imagenet21k": (13_151_276, 19_167),  # the winter 2021 release, as deit3-jax counts it
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "flowers102": (2_040, 102),  # its training and validation images together, as is usual in transfer
    "cars": (8_144, 196),
    "inat18": (437_513, 8_142),
    "inat19": (265_213, 1_010),
}


class DataSet(NamedTuple):
    """What a stage trains on and is evaluated on, and the size of its head. remark: what is odd about the two files."""

    train: DatasetInfo
    val: DatasetInfo
    classes: int
    remark: str = ""


def open_sets(recipe: Recipe, first: int = 0) -> dict[str, DataSet]:
    """The data sets of the stages from number `first` on, with all files checked."""
    files = {word: files_of(recipe, word) for word in _words(recipe, first)}
    from ffcv_ops.storage.pairs import pair_remark  # brings FFCV and torch, as described does

    sets = {word: _data_set(recipe, *map(described, both)) for word, both in files.items()}
    return {word: data._replace(remark=pair_remark(data.train.path, data.val.path)) for word, data in sets.items()}


def class_weights(data: DataSet) -> np.ndarray:
    """For each output the training images of an average class over those of its own, float32 (classes,); 1 for a class
    without images."""
    from ffcv_ops.storage.index import column, open_index

    counts = np.bincount(column(open_index(data.train.path), "label"), minlength=data.classes)
    return np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / (counts > 0).sum(), 1.0).astype(np.float32)


def planned_sets(recipe: Recipe) -> dict[str, DataSet]:
    """The same for plans: where the training file is not here, see `assumed`."""
    sets = {}
    for word in _words(recipe):
        train, val = map(Path, files_of(recipe, word))
        known = described(train) if exists(train) else assumed(train)
        sets[word] = _data_set(recipe, known, described(val) if exists(train) and exists(val) else known)
    return sets


def described(path: Path | str) -> DatasetInfo:
    """What a file that the recipe names holds."""
    if not exists(path) and not os.path.islink(path):  # of a link that leads nowhere `describe` says so
        raise UserError(
            f"{path}: no such file; write it with `python write_datasets.py`, or set --data.train, --data.val"
        )
    from ffcv_ops.storage.index import describe  # brings FFCV and torch, which a plan without files does not need

    return describe(path)


def assumed(path: Path | str) -> DatasetInfo:
    """What a .beton of this name would hold: the public data set, or as much as ImageNet-1k."""
    images, classes = PUBLIC.get(Path(path).stem.rpartition("_")[0], PUBLIC["imagenet"])
    return DatasetInfo(Path(path), images, classes, None)


def remarks(sets: dict[str, DataSet]) -> Iterator[str]:
    """What is odd about the data of a run, a line each: files without checksums, images of validation that are trained
    on, and mostly empty classes."""
    parts = {info.path: info for part in sets.values() for info in (part.train, part.val)}
    for path, info in parts.items():
        if not info.checksums:
            yield f"{path}: no checksums lie beside it (x.json, x.xxh64), so damaged pixels and labels are not noticed"
    for part in sets.values():
        if part.remark:
            yield part.remark
        if 2 * part.train.empty > part.train.classes:
            yield f"{part.train.path}: {part.train.empty:,} of {part.train.classes:,} classes have no images"


def _words(recipe, first=0):
    return dict.fromkeys(stage.data for stage in recipe.stages[first:])


def files_of(recipe: Recipe, word: str) -> tuple[str, str]:
    """The .beton files for training and validation of the stages whose `data` is this word."""
    data = recipe.data
    return (data.train, data.val) if word == "main" else (data.finetune_train, data.finetune_val)


def _data_set(recipe, train, val):
    _same_classes(train, val)
    needed = max(train.classes, val.classes)
    classes = needed if recipe.model.classes == "auto" else recipe.model.classes
    if classes < needed:
        raise UserError(f"model.classes is {classes}, but labels go up to {needed - 1} in {train.path} or {val.path}")
    return DataSet(train, val, classes)


def _same_classes(train, val):
    """A label must mean one class; what has no names is taken at its word. Validation may lack the last classes."""
    for label, name in enumerate(val.class_names or ()):
        known = train.class_names or val.class_names
        other = f"class {label} is {known[label]!r}" if label < len(known) else f"there are {len(known)} classes"
        if label >= len(known) or known[label] != name:
            raise UserError(
                f"class {label} is {name!r} in {val.path}, while in {train.path} {other}; write both in one go, or"
                " with the same --data.classes"
            )
