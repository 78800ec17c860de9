"""What a stopped conversion has finished, and whether this one may continue it.

x.unfinished says what is converted and how, and which shards are complete; it is also the lock. The same conversion
continues; another one under the same name is refused, since hours of work may lie there.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import features
from xxhash import xxh64

from conversion import beton, journal
from conversion.encode import Refused, encode_or_refuse, stored_images
from conversion.shard_writer import ShardWriter
from conversion.shards import Shard, beside, partial_files
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import locked, read_regular

NAMES_AT_ONCE = 1024
WRITER = 3  # another number when the same settings give other bytes, or the journal has another form
PROBES = 32  # finished items that are encoded again before a conversion continues, and as many refused ones


def identity_of(source, split_name: str, shards: int, settings: dict) -> dict:
    """Everything that decides the bytes of the files, except the images themselves; under `id` a digest of it, under
    `pair` one of what all splits of the source are."""
    contents = {name: _content(split) for name, split in source.splits.items()}
    identity = {
        "source": source.origin,
        "split": split_name,
        **contents[split_name],
        "classes": xxh64("\n".join(source.classes).encode("utf-8", "surrogateescape")).hexdigest(),
        "made": dict(source.made),
        "shards": shards,
        **settings,
        "writer": WRITER,
        "pillow": PIL.__version__,
        "libjpeg": features.version("jpg"),
    }
    identity["pair"] = _digest([source.origin, identity["classes"], identity["made"], contents])
    identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    return {"id": _digest(identity), **identity}


def _content(split) -> dict:
    """What tells another list of images."""
    names, all_names = xxh64(), iter(split.names)
    while batch := list(itertools.islice(all_names, NAMES_AT_ONCE)):
        names.update("\n".join([*batch, ""]).encode("utf-8", "surrogateescape"))
    labels = xxh64(np.ascontiguousarray(split.labels, "<i8"))
    return {"images": len(split.items), "names": names.hexdigest(), "labels": labels.hexdigest()}


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def begin_or_resume(marker, identity: dict, path: Path) -> set[int]:
    """Writes to the open file `marker` what is converted to `path`. Where it says so already, everything stays, and the
    numbers of the completed shards are returned. A `UserError` where the work of another conversion would be lost."""
    marker.seek(0)
    try:
        earlier = json.loads(marker.readline())
    except ValueError:
        earlier = {}
    if earlier.get("id") == identity["id"]:
        return completed_shards(marker)
    journals = (file for file in partial_files(path) if file.name.endswith(".journal.partial"))
    if earlier and (completed_shards(marker) or any(file.stat().st_size for file in journals)):
        changed = [name for name in identity if name != "id" and identity[name] != earlier.get(name)]
        shown = ", ".join(f"{name} {earlier.get(name)} instead of {identity[name]}" for name in changed[:3])
        raise UserError(
            f"{marker.name}: an unfinished conversion has {shown}; repeat that one, or remove this file to start over"
        )
    for file in partial_files(path):
        file.unlink()
    marker.truncate(0)
    _add_line(marker, json.dumps(identity))
    return set()


def add_completed(marker, shard: Shard):
    """Records that the shard has been read back, and takes its final name now."""
    _add_line(marker, str(shard.number))


def completed_shards(marker) -> set[int]:
    """The numbers of the shards that `add_completed` recorded."""
    marker.seek(0)
    return {int(number) for number in marker.read().splitlines()[1:] if number.isdigit()}


def clear_marker(path: Path):
    """Ends a complete conversion to `path`: the next one starts over, since images may change under their names."""
    with contextlib.suppress(UserError), locked(beside(path, ".unfinished"), path) as marker:
        os.unlink(marker.name)


def _add_line(marker, line):
    marker.write(line.encode() + b"\n")
    marker.flush()
    os.fsync(marker.fileno())


def status_text(path: Path, shards: Sequence[Shard]) -> str:
    """What a conversion to `path` that was stopped leaves for the next start."""
    marker, done = beside(path, ".unfinished"), 0
    if marker.exists():
        with marker.open("rb") as file:
            completed = completed_shards(file)
        done = sum(len(shard.items) if shard.number in completed else _recorded_items(shard) for shard in shards)
    if not done:
        return f"no images of {path} are finished yet; the same command starts over"
    total = sum(len(shard.items) for shard in shards)
    return f"{done:,} of {total:,} images of {path} are finished; run the same command again to continue"


def _recorded_items(shard):
    """How many of the shard's items the journal says are finished."""
    file = beside(shard.path, ".journal.partial")
    records = journal.records(io.BytesIO(file.read_bytes())) if file.exists() else ()
    return max((int(record["done"]) for record in records), default=0)


def is_complete(shard: Shard, identity: dict, split, encode) -> bool:
    """Whether the shard's files are those that this conversion has finished, and its images, by PROBES of them, are
    still what they were."""
    return _has_its_files(shard, identity) and _has_its_images(shard, split, encode)


def _has_its_files(shard, identity):
    try:
        sidecar = json.loads(read_regular(beside(shard.path, ".json")))
        return (
            not beside(shard.path, ".beton.partial").exists()
            and sidecar["conversion"] == identity["id"]
            and shard.path.stat().st_size == sidecar["bytes"]
            and beton.index_checksum(shard.path) == sidecar["index_xxh64"]
        )
    except (OSError, UserError, ValueError, KeyError):
        return False


def _has_its_images(shard, split, encode):
    skipped = beside(shard.path, ".skipped.txt")
    lines = skipped.read_text(encoding="utf-8", errors="surrogateescape").split("\n") if skipped.exists() else ()
    refused = {line.partition("\t")[0] for line in lines}
    items = [number for number in shard.items if split.names[number] not in refused] if refused else shard.items
    checksums, owners = np.fromfile(beside(shard.path, ".xxh64"), beton.CHECKSUM), beton.owners(shard.path)
    for sample in _probes(range(len(items))):
        if not _is_stored_so(items[sample], split, encode, checksums[owners == sample]):
            name = one_line(split.names[items[sample]])
            print(f"{shard.path}: {name} has changed; this shard is written again", file=sys.stderr)
            return False
    return True


def check_unchanged(writer: ShardWriter, split, encode):
    """Encodes some of the finished items again: a `UserError` unless the images, and what becomes of them, are as they
    were."""
    start, stored = writer.shard.items.start, writer.beton.stored
    owners, checksums = writer.beton.allocations["sample_id"][:stored], writer.beton.checksums[:stored]
    for number in [*_probes(range(start, start + writer.done)), *_probes(writer.refused)]:
        sample = number - start - np.searchsorted(writer.refused, number)
        own = (owners == sample) & (number not in writer.refused)
        if not _is_stored_so(number, split, encode, checksums[own]):
            raise UserError(
                f"{split.names[number]} has changed since the unfinished {writer.shard.path} was begun;"
                f" remove {beside(writer.shard.path, '.journal.partial')} to start that file over"
            )


def _is_stored_so(number, split, encode, checksums):
    """Whether the item, encoded again, has the checksums of its stored images; none where it was refused."""
    result = encode_or_refuse(encode, split.items[number])
    if not isinstance(result, Refused):
        return sorted(image.checksum for image in stored_images(result)) == sorted(checksums.tolist())
    if result.unreadable:
        raise UserError(f"{split.names[number]}: {result.reason}; check the source's disk or network")
    return not len(checksums)


def _probes(numbers):
    """At most PROBES of them, evenly spread."""
    return numbers[:: max(1, -(-len(numbers) // PROBES))]
