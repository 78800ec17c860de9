"""The data sets of a run: which .beton files its stages read, and how many classes the head for them has.

In: a run. Out: {the word of `stage.data`: DataSet}.
"""

from pathlib import Path
from typing import NamedTuple

from ffcv_ops.errors import BadInput
from ffcv_ops.fields import Beton, describe
from training.recipe import Run

# (images to train on, classes) by the name that our recipes give the file, for plans made where it is not.
PUBLIC = {
    "imagenet": (1_281_167, 1_000),
    "imagenet21k": (13_151_276, 19_167),  # the winter 2021 release, as deit3-jax counts it
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "flowers102": (2_040, 102),  # its training and validation images together, as is usual in transfer
    "cars": (8_144, 196),
    "inat18": (437_513, 8_142),
    "inat19": (265_240, 1_010),
}


class DataSet(NamedTuple):
    """What a stage trains on and is evaluated on, and the size of its head."""

    train: Beton
    val: Beton
    classes: int


def open_sets(run: Run, first: int = 0) -> dict[str, DataSet]:
    """The data sets of the stages from number `first` on, with all files checked."""
    return {word: _data_set(run, word, describe) for word in _words(run, first)}


def planned_sets(run: Run) -> dict[str, DataSet]:
    """The same for plans: a file that is not here counts as what `PUBLIC` says of its name, else as ImageNet-1k."""
    return {word: _data_set(run, word, lambda path: describe(path) if Path(path).exists() else assumed(path))
            for word in _words(run, 0)}  # fmt: skip


def assumed(path) -> Beton:
    """What a .beton of this name would hold."""
    images, classes = PUBLIC.get(Path(path).stem.rpartition("_")[0], PUBLIC["imagenet"])
    return Beton(Path(path), images, classes, None)


def _words(run, first):
    return dict.fromkeys(stage.data for stage in run.stages[first:])


def _data_set(run, word, look):
    paths = {"main": (run.data.train, run.data.val), "finetune": (run.data.finetune_train, run.data.finetune_val)}
    train, val = map(look, paths[word])
    needed = max(train.classes, val.classes)
    classes = needed if run.model.classes == "auto" else run.model.classes
    if classes < needed:
        raise BadInput(f"model.classes is {classes}, but labels go up to {needed - 1} in {train.path} or {val.path}")
    return DataSet(train, val, classes)
