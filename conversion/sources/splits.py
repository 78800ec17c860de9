"""Which split a name means: the words for train, val and test that files, folders and tables use."""

import re
from collections.abc import Iterable

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
