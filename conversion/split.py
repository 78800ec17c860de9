"""A validation set for a source that has none: a fixed share of the images of each class.

Val gets the images of each class whose names have the smallest hashes. So the same folder gives the same split on every
machine, in whatever order it was read, and an added image moves at most one other.
"""

import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from conversion.sources import Source, Split
from ffcv_ops.errors import UserError


class Subset(NamedTuple):
    """Some rows of a sequence (int64 [n]), itself a sequence: no copy of names that may be millions."""

    sequence: Sequence
    rows: np.ndarray

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.sequence[row] for row in self.rows[index]]
        return self.sequence[self.rows[index]]

    def __iter__(self):
        return (self.sequence[row] for row in self.rows)


def with_val(source: Source, share: float) -> Source:
    """The source with `share` of each class's training images as its split `val`: at least one, and never all. A class
    with a single image stays in train whole."""
    if "val" in source.splits:
        raise UserError(f"data.val_share is {share:g}, but {source.origin} has a val of its own; leave it out")
    if "train" not in source.splits:
        raise UserError(f"{source.origin} has no train to take a val from, but {', '.join(source.splits)}")
    train = source.splits["train"]
    hashes = np.fromiter(
        (xxhash.xxh64_intdigest(os.fsencode(name)) for name in train.names), np.uint64, len(train.names)
    )
    labels = np.asarray(train.labels)
    by_class = np.lexsort((hashes, labels))  # class after class, in each by hash
    starts = np.searchsorted(labels[by_class], np.arange(labels.max() + 2))
    chosen = np.zeros(len(labels), bool)
    for first, end in itertools.pairwise(starts):
        images = end - first
        if images > 1:
            chosen[by_class[first : first + min(max(round(share * images), 1), images - 1)]] = True
    if not chosen.any():
        raise UserError(f"{source.origin} has one image a class; none can be left for val")
    parts = {"train": np.flatnonzero(~chosen), "val": np.flatnonzero(chosen)}
    splits = {
        name: Split(Subset(train.items, rows), Subset(train.names, rows), labels[rows]) for name, rows in parts.items()
    }
    splits["train"] = splits["train"]._replace(left_out=train.left_out)
    return source._replace(splits=source.splits | splits)
