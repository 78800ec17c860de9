"""Which split a name means: the words for train, val and test that files, folders and tables use."""

import re
from collections.abc import Iterable
from pathlib import Path

from ffcv_ops.errors import UserError, one_line

SPLITS = ("train", "val", "test")
ALL = "all"  # the one split of a source that is not divided
WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_of(name: str, default: str | None = "train") -> str | None:
    """train, val or test, by the first such word in the name; `default` where there is none."""
    words = (WORDS.get(word) for word in re.split(r"[^a-z]+", name.lower()))
    return next(filter(None, words), default)


def by_split(names: Iterable[str], place) -> dict[str, str]:
    """{split: its name} in the order of SPLITS. A `UserError` where a name has no such word, or two mean one split."""
    known = {}
    for name in names:
        split, shown = split_of(name, None), one_line(name)
        if split is None:
            raise UserError(
                f"{place}: the split {shown} is neither train, val nor test; take it out there, or rename it"
            )
        if split in known:
            raise UserError(f"{place}: {one_line(known[split])} and {shown} are both {split}; take one of them out")
        known[split] = name
    return {split: known[split] for split in SPLITS if split in known}


def files_by_split(place: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files of each split, by their names, in the order of SPLITS. Of a folder, `place`, none may be missing."""
    if place.is_dir():
        _refuse_missing(files)
    return {split: found for split in SPLITS if (found := [file for file in files if split_of(file.name) == split])}


def _refuse_missing(paths: list[Path]):
    """A `UserError` where names such as x-00003-of-00010 tell of files that are not there."""
    found = {}
    for path in paths:
        if name := re.fullmatch(r"(.*?)([0-9]+)-of-([0-9]+)(\.[a-z]+)", path.name):
            found.setdefault((name[1], int(name[3]), name[4]), set()).add(int(name[2]))
    for (stem, count, _), numbers in found.items():
        first = min(numbers)  # some count from 1
        if missing := sorted(set(range(min(first, 1), min(first, 1) + count)) - numbers):
            raise UserError(
                f"{paths[0].parent} lacks {len(missing):,} of the {count:,} files {one_line(stem)}*, the first is"
                f" number {missing[0]}; get them, or choose those that are there by a pattern with *"
            )
