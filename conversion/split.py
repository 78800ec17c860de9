"""Which images of a source are train and which are val, where the source does not say: a fixed share of the images of
each class, or one of several folds; and how many of each class are trained on.

The images of each class are drawn in the order of a hash of (seed, name): the first of them become val. So the same
folder gives the same split on every machine, in whatever order it was read, and an added image moves at most one other.
"""

import itertools
import os
import sys

import numpy as np
import xxhash

from conversion.sources import Source, Split
from conversion.sources.source import Made
from conversion.sources.splits import ALL
from ffcv_ops.errors import UserError, one_line

SHARE = 0.1  # that becomes val where a source is not divided and nothing else is said


def divided(
    source: Source,
    *,
    val_share: float | str | None,
    seed: int,
    folds: int | None,
    fold: int | None,
    per_class: int | None,
) -> Source:
    """The source with the splits train and perhaps val and test, by the keys of --data that divide it; `made` tells how
    they were made."""
    if (folds is None) != (fold is None) or (folds is not None and fold >= folds):
        raise UserError(
            "--data.folds=5 --data.fold=0: data.folds is their number, data.fold the one that is val, from 0"
        )
    if folds and isinstance(val_share, float):
        raise UserError("data.val_share and data.folds both make a val; give one of them")
    whole = source.splits.get(ALL)
    if whole:
        source = source._replace(splits={"train": whole})
    share, shown = val_share, one_line(str(source.made.get("source", source.origin)))
    if share == "auto":
        share = SHARE if whole and not folds and np.bincount(whole.labels).max() > 1 else None
        if share:
            print(
                f"{shown} is not divided: {share:g} of each class becomes val;"
                " --data.val_share=none leaves all in train", file=sys.stderr,
            )  # fmt: skip
    if share is not None:
        source = with_val(source, share, seed)
    elif folds:
        source = with_fold(source, folds, fold, seed)
    elif "test" in source.splits and "val" not in source.splits:
        print(f"{shown} has no val; its test is written as val", file=sys.stderr)
        source = source._replace(splits={"val" if name == "test" else name: s for name, s in source.splits.items()})
    made = {"val_share": share, "folds": folds, "fold": fold, "per_class": per_class}
    if per_class is not None:
        source = with_few(source, per_class, seed)
    if any(value is not None for value in made.values()):
        made["seed"] = seed or None
    return source._replace(made=source.made | {name: value for name, value in made.items() if value is not None})


def with_val(source: Source, share: float, seed: int = 0) -> Source:
    """The source with `share` of each class's training images as its split `val`: at least one, and never all. A class
    with a single image stays in train whole."""
    train = _train_of(source, f"data.val_share is {share:g}")
    by_class, starts = _drawn(train, seed)
    chosen = np.zeros(len(by_class), bool)
    for first, end in itertools.pairwise(starts):
        images = end - first
        if images > 1:
            chosen[by_class[first : first + min(max(round(share * images), 1), images - 1)]] = True
    if not chosen.any():
        raise UserError(f"{source.origin} has one image a class; none can be left for val")
    return _with_parts(source, {"train": ~chosen, "val": chosen})


def with_fold(source: Source, folds: int, fold: int, seed: int) -> Source:
    """The source with one of `folds` equal parts of its training images as val. Each class, and all, are dealt out
    evenly: parts differ by one image at most."""
    train = _train_of(source, f"data.folds is {folds}")
    if len(train.names) < folds:
        raise UserError(f"{source.origin} has {len(train.names)} images; data.folds={folds} needs as many")
    by_class, _ = _drawn(train, seed)
    chosen = np.zeros(len(by_class), bool)
    chosen[by_class[fold::folds]] = True
    return _with_parts(source, {"train": ~chosen, "val": chosen})


def with_few(source: Source, count: int, seed: int) -> Source:
    """The source with `count` images of each class in train, or all where there are fewer. Those of a smaller count are
    among those of a larger."""
    if "train" not in source.splits:
        raise UserError(f"{source.origin} has no train to take data.per_class from")
    by_class, starts = _drawn(source.splits["train"], seed)
    few = np.zeros(len(by_class), bool)
    for first, end in itertools.pairwise(starts):
        few[by_class[first : min(first + count, end)]] = True
    return _with_parts(source, {"train": few})


def _train_of(source, wish) -> Split:
    if "val" in source.splits:
        raise UserError(f"{wish}, but {source.origin} has a val of its own; leave it out")
    if "train" not in source.splits:
        raise UserError(f"{source.origin} has no train to take a val from, but {', '.join(source.splits)}")
    return source.splits["train"]


def _drawn(split, seed) -> tuple[np.ndarray, np.ndarray]:
    """Rows, class after class and in each by hash; and where each class begins and the last ends."""
    hashes = (xxhash.xxh64_intdigest(os.fsencode(name), seed) for name in split.names)
    by_class = np.lexsort((np.fromiter(hashes, np.uint64, len(split.names)), split.labels))
    return by_class, np.searchsorted(split.labels[by_class], np.arange(split.labels.max() + 2))


def _with_parts(source, chosen) -> Source:
    """The source with these rows of its train as splits, by masks."""
    train, parts = source.splits["train"], {}
    for name, mask in chosen.items():
        rows = np.flatnonzero(mask)
        parts[name] = Split(_subset(train.items, rows), _subset(train.names, rows), train.labels[rows])
    parts["train"] = parts["train"]._replace(left_out=train.left_out)
    return source._replace(splits=source.splits | parts)


def _subset(sequence, rows) -> Made:
    """Some rows of a sequence: no copy of names that may be millions."""
    return Made(len(rows), lambda number: sequence[rows[number]])
