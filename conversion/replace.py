"""What lies already where a conversion would write: its own files of before, or those of another."""

import json
from collections.abc import Mapping
from pathlib import Path

from conversion.shards import ENDS, beside, files_at
from conversion.sources import Source
from conversion.sources.splits import SPLITS
from ffcv_ops.errors import UserError
from ffcv_ops.files import read_regular


def others(out: str, source: Source, replace: bool) -> list[Path]:
    """The .beton files called `out` of splits that the source lacks, which would remain as if they belonged to it. A
    `UserError`, unless `replace`, for the first of them, and for the first that would be overwritten though it was made
    of another source, or divided otherwise."""
    remaining = []
    for split in SPLITS:
        for file in files_at(Path(f"{out}_{split}.beton"), [".beton"]):
            reason = _difference(file, source.made, source.origin)
            if split not in source.splits:
                reason = f"is there, but this conversion writes no {split}"
                remaining.append(file)
            if reason and not replace:
                raise UserError(
                    f"{file} {reason}; --data.replace=true {'removes' if file in remaining else 'replaces'} it,"
                    " another --data.out keeps it"
                )
    return remaining


def remove(file: Path):
    """A .beton, and then what lies beside it."""
    for end in reversed(ENDS):
        beside(file, end).unlink(missing_ok=True)


def _difference(file, made: Mapping, origin) -> str:
    """How x.json tells of another conversion; "" where it does not."""
    try:
        said = json.loads(read_regular(beside(file, ".json")))
        before = said.get("made")
        if before is None:  # written before there was such a record
            before = {name: value for name, value in made.items() if name != "source"}
            before["source"] = made.get("source") if said["source"] == origin else said["source"]
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return "has no .json that tells what it was made of"
    for key in sorted({*made, *before}, key="source".__ne__):
        if before.get(key) != made.get(key):
            return f"was made with data.{key} {before.get(key, 'not given')}; now it is {made.get(key, 'not given')}"
    return ""
