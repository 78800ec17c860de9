"""The shards of one split: x.beton, or x-00000-of-00008.beton and its like, each with the files that describe it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from conversion.encode import Refused, encode_all, stored_bytes
from ffcv_ops.errors import UserError

SHARD_BYTES = 2**30  # some 20,000 of ImageNet's images: small enough to copy again, large enough to be read as a file
PROBES = 64


class Shard(NamedTuple):
    """A .beton, the numbers of the items that are in it, and which of how many it is."""

    path: Path
    items: range
    number: int
    count: int


def shards_of(path: Path, items: int, shards: int) -> list[Shard]:
    """So many items in so many shards, but not more shards than items. The items of a shard follow each other."""
    count = max(1, min(shards, items))
    bounds = [items * number // count for number in range(count + 1)]
    paths = [path] if count == 1 else [beside(path, f"-{number:05}-of-{count:05}.beton") for number in range(count)]
    return [Shard(paths[k], range(bounds[k], bounds[k + 1]), k, count) for k in range(count)]


def auto_shards(items: Sequence, encode) -> int:
    """How many shards of about SHARD_BYTES the items fill, by the size of PROBES of them."""
    results = encode_all(encode, [items[k] for k in range(0, len(items), -(-len(items) // PROBES))])
    sizes = [stored_bytes(sample) for sample in results if not isinstance(sample, Refused)]
    return max(1, round(len(items) * sum(sizes) / max(len(sizes), 1) / SHARD_BYTES))


def beside(path: Path, end: str) -> Path:
    """x.beton, .json -> x.json"""
    return path.with_name(path.name.removesuffix(".beton") + end)


def refuse_other_shards(path: Path, shards: int):
    """A `UserError` where shards of another conversion lie at `path`, which a pattern such as x-*.beton would find."""
    name = re.compile(re.escape(path.name.removesuffix(".beton")) + r"-\d{5}-of-(\d{5})\.beton")
    for file in sorted(path.parent.iterdir()) if shards > 1 else ():
        found = name.fullmatch(file.name)
        if found and int(found[1]) != shards:
            raise UserError(f"{file} is one of {int(found[1])} shards, not of {shards}; remove those first")


def partial_files(path: Path) -> list[Path]:
    """What stopped conversions to `path` or to shards of it have left: <file>.partial."""
    stem = re.escape(path.name.removesuffix(".beton"))
    name = re.compile(stem + r"(-\d{5}-of-\d{5})?\.(beton|journal|json|xxh64|files\.txt|skipped\.txt)\.partial")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))
