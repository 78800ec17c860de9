"""Which files a path or a pattern of shards means, and whether they are the whole of one data set."""

import glob
import os
import re
from pathlib import Path

from ffcv_ops.errors import UserError
from ffcv_ops.storage.beton_file import Head, sidecar


def files_of(path: Path | str) -> list[Path]:
    """The file `path` or, where its name holds a `*`, all the .beton files that match, by name."""
    matching = sorted(name for name in glob.glob(str(path)) if name.endswith(".beton"))
    found = [Path(name) for name in (matching if "*" in str(path) else [path]) if os.path.lexists(name)]
    if not found:
        raise UserError(f"{path}: no such file")
    return found


def check_shards(path: Path | str, heads: list[Head]) -> None:
    """All shards of one conversion are there, once each, in order, and nothing else is."""
    again = f"{path} must match the shards of one data set and nothing else; name them closer, or write them again"
    places = [_place(head) for head in heads]
    for head, place in zip(heads, places, strict=True):
        if place is None:
            raise UserError(f"{head.path}: no shard: neither its name nor its .json says its number; {again}")
        if place[1] != places[0][1]:
            raise UserError(f"{head.path}: one of {place[1]} shards, {heads[0].path} of {places[0][1]}; {again}")
        for what, one in _kind(head).items():
            if one != _kind(heads[0])[what]:
                raise UserError(f"{head.path}: not of one data set with {heads[0].path}: other {what}; {again}")
    numbers, count = [number for number, _ in places], places[0][1]
    if numbers != list(range(count)):
        missing = sorted(set(range(count)) - set(numbers))
        what = f"shard {missing[0]} of {count} is missing" if missing else "its shards are not in order, or there twice"
        raise UserError(f"{path}: {what}; {again}")


def _place(head: Head) -> tuple[int, int] | None:
    """(number, how many) of a shard: what x.json says and, if there is a number in it, the name."""
    named = re.search(r"-(\d{5,})-of-(\d{5,})$", head.path.stem)
    by_name = (int(named[1]), int(named[2])) if named else None
    said = (head.sidecar.get("shard"), head.sidecar.get("shards"))
    if said == (None, None):
        return by_name
    if by_name not in (None, said):
        raise UserError(f"{head.path}: shard {said[0]} of {said[1]}, as {sidecar(head.path)} says; rename it back")
    return said


def _kind(head: Head) -> dict:
    """What all shards must have in common."""
    return {
        "classes": head.class_names,
        "fields": [(name, type(handler)) for name, handler in head.handlers.items()],
        "page size": head.page_size,
        "split": head.sidecar.get("split"),
        "source": head.sidecar.get("source"),
        "conversion": head.sidecar.get("conversion"),
    }
