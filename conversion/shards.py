"""The files of one split: x.beton, or x-00000-of-00008.beton and its like, each with the files that describe it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from conversion.encode import Refused, encode_all, stored_bytes
from ffcv_ops.errors import UserError

SHARD_BYTES = 2**30  # some 20,000 of ImageNet's images: small enough to copy again, large enough to be read as a file
PROBES = 64


class Part(NamedTuple):
    """A .beton, the numbers of the items that are in it, and which of how many it is."""

    path: Path
    items: range
    shard: int
    shards: int


def parts_of(path: Path, count: int, shards: int) -> list[Part]:
    """`count` items in `shards` files, but not more files than items. The items of a file follow each other."""
    shards = max(1, min(shards, count))
    bounds = [count * shard // shards for shard in range(shards + 1)]
    paths = [path] if shards == 1 else [beside(path, f"-{shard:05}-of-{shards:05}.beton") for shard in range(shards)]
    return [Part(paths[k], range(bounds[k], bounds[k + 1]), k, shards) for k in range(shards)]


def automatic(items: Sequence, encode) -> int:
    """How many shards of about SHARD_BYTES the items fill, by what some of them take."""
    results = encode_all(encode, [items[k] for k in range(0, len(items), -(-len(items) // PROBES))])
    sizes = [stored_bytes(sample) for sample in results if not isinstance(sample, Refused)]
    return max(1, round(len(items) * sum(sizes) / max(len(sizes), 1) / SHARD_BYTES))


def beside(path: Path, end: str) -> Path:
    """x.beton, .json -> x.json"""
    return path.with_name(path.name.removesuffix(".beton") + end)


def refuse_other_shards(path: Path, shards: int):
    """A pattern must not find the shards of two conversions."""
    name = re.compile(re.escape(path.name.removesuffix(".beton")) + r"-\d{5}-of-(\d{5})\.beton")
    for file in sorted(path.parent.iterdir()) if shards > 1 else ():
        found = name.fullmatch(file.name)
        if found and int(found[1]) != shards:
            raise UserError(f"{file} is one of {int(found[1])} shards, not of {shards}; remove those first")


def remains(path: Path) -> list[Path]:
    """What is left of unfinished conversions to `path` or to shards of it: <file>.partial."""
    stem = re.escape(path.name.removesuffix(".beton"))
    name = re.compile(stem + r"(-\d{5}-of-\d{5})?\.(beton|journal|json|xxh64|files\.txt|skipped\.txt)\.partial")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))
