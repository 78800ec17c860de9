"""The shards of one split: x.beton, or x-00000-of-00008.beton and its like, each with the files that describe it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from conversion.encode import Refused, encode_or_refuse, stored_images
from ffcv_ops.errors import UserError

SHARD_BYTES = 2**30  # some 20,000 of ImageNet's images: small enough to copy again, large enough to be read as a file
PROBES = 64
ENDS = (".files.txt", ".skipped.txt", ".xxh64", ".json", ".beton")  # in the order in which they get final names


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
    results = [encode_or_refuse(encode, item) for item in items[:: -(-len(items) // PROBES)]]
    samples = [stored_images(result) for result in results if not isinstance(result, Refused)]
    size = sum(len(image.data) for sample in samples for image in sample)
    return max(1, round(len(items) * size / max(len(samples), 1) / SHARD_BYTES))


def beside(path: Path, end: str) -> Path:
    """x.beton, .json -> x.json"""
    return path.with_name(path.name.removesuffix(".beton") + end)


def files_at(path: Path, ends: Sequence[str]) -> dict[Path, int | None]:
    """The files at `path` with these ends instead of .beton, and those of its shards, by name: of how many shards each
    is one, None where it is none."""
    stem, end = re.escape(path.name.removesuffix(".beton")), "|".join(map(re.escape, ends))
    name = re.compile(rf"{stem}(?:-\d{{5}}-of-(\d{{5}}))?(?:{end})")
    files = sorted(path.parent.iterdir()) if path.parent.is_dir() else ()
    return {file: int(found[1]) if found[1] else None for file in files if (found := name.fullmatch(file.name))}


def refuse_other_shards(path: Path, shards: int):
    """A `UserError` where shards of another conversion lie at `path`, which a pattern such as x-*.beton would find."""
    for file, count in files_at(path, [".beton"]).items():
        if shards > 1 and count not in (None, shards):
            raise UserError(f"{file} is one of {count} shards, not of {shards}; remove those first")


def partial_files(path: Path) -> list[Path]:
    """What stopped conversions to `path` or to shards of it have left."""
    return list(files_at(path, [f"{end}.partial" for end in (*ENDS, ".journal")]))
