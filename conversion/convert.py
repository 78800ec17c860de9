"""One split of a source -> x.beton, with x.json, x.xxh64, x.files.txt and, when images were left out, x.skipped.txt; or
several such files, the shards of the split.

Everything is written under temporary names and read back on the way. Only then do the files get their final names, the
.beton last: what has a final name is complete, and an older file stays until the new one takes its place. When a
conversion is stopped, what it has finished stays under the temporary names, and the same command continues there.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from xxhash import xxh64_hexdigest

from conversion import beton
from conversion.encode import ImageConfig, Refused, encode_item
from conversion.progress import progress
from conversion.read_back import check_index
from conversion.resume import (
    add_completed,
    begin_or_resume,
    check_unchanged,
    completed_shards,
    identity_of,
    is_complete,
)
from conversion.shard_writer import ShardWriter
from conversion.shards import ENDS, Shard, beside, partial_files, refuse_other_shards, shards_of
from conversion.sources import Source, Split
from conversion.workers import encode_parallel
from ffcv_ops.errors import UserError, writing
from ffcv_ops.files import locked

SIDECAR_FORMAT = 3
FEW_SKIPPED = 10  # images of a split that may always be skipped, however small it is


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """How a split is written. page_size: bytes, a power of 2 of at least 2 MiB; shards: files at most.

    on_error: `stop` ends at the first item, in the split's order, that cannot be stored; `skip` leaves it out, but of
    a split no more than the share `max_skipped` (or FEW_SKIPPED). An item that cannot be read always ends it.
    """

    page_size: int
    on_error: Literal["stop", "skip"] = "stop"
    max_skipped: float = 0.01
    workers: int = 1
    shards: int = 1


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the functions below work on: a split, the function that encodes its items, and how it is written.

    skipped: images that were left out, by the path of the shard. settings: what x.json says of how it was made."""

    source: Source
    split_name: str
    encode: functools.partial
    options: WriteOptions
    settings: dict
    skipped: dict[Path, int] = dataclasses.field(default_factory=dict)

    @property
    def split(self) -> Split:
        return self.source.splits[self.split_name]


def convert(
    source: Source, split_name: str, path: Path, image: ImageConfig, options: WriteOptions, *, last: bool = True
) -> str:
    """Writes the split `split_name` of `source` to `path`, or to shards of it. Returns a line that says what is there
    now.

    last: no other split follows. Else x.unfinished stays, so that a stop in the next split does not start this one
    over; `clear_marker` removes it.
    """
    began = time.monotonic()
    split = source.splits[split_name]
    shards = shards_of(path, len(split.items), options.shards)
    settings = {"page_size": options.page_size, **dataclasses.asdict(image)}
    encode = functools.partial(encode_item, read=source.read, image=image)
    found = 0
    with (
        writing(path),
        locked(beside(path, ".unfinished"), path) as marker,
        _cleanup(path, marker, len(shards), last) as complete,
    ):
        refuse_other_shards(path, len(shards))
        if folders := [file for shard in shards for end in ENDS if (file := beside(shard.path, end)).is_dir()]:
            raise UserError(f"{folders[0]} is a folder, where a file is to be written; move it away")
        identity = identity_of(source, split_name, len(shards), settings)
        ids = {"conversion": identity["id"], "pair": identity["pair"], "made": identity["made"]}
        settings = {**ids, "settings": {"on_error": options.on_error, **settings}}
        task = _Task(source, split_name, encode, options, settings)
        read_back = begin_or_resume(marker, identity, path)
        finished = [
            shard for shard in shards if shard.number in read_back and is_complete(shard, identity, split, encode)
        ]
        if 0 < len(finished) < len(shards):
            print(f"{path}: {len(finished)} of {len(shards)} files are finished", file=sys.stderr)
        with contextlib.ExitStack() as bar:
            advance = bar.enter_context(progress(split_name, len(split.items)))
            for shard in shards:
                if shard in finished:
                    task.skipped[shard.path] = _sidecar(shard)["skipped"]
                    found += len(shard.items)
                    advance(0, found=len(shard.items))
                else:
                    fields = beton.level_fields(image.levels or ())
                    with ShardWriter(shard, options.page_size, fields) as writer:
                        _check_resumed(writer, task)
                        found += writer.done
                        advance(0, found=writer.done)
                        _fill(writer, task, advance)
                        if shard is shards[-1]:
                            bar.close()
                        _complete(writer, task, functools.partial(add_completed, marker, shard))
                complete.append(shard)
    return _summary(shards, path, source, (len(split.items) - found) / (time.monotonic() - began))


@contextlib.contextmanager
def _cleanup(path, marker, shards, last):
    """Gives a list for the shards that are complete. Afterwards nothing temporary is left but what can be continued,
    and `marker` only while there is such a thing, or a completed shard is recorded in it."""
    complete = []
    try:
        yield complete
    finally:
        is_whole = len(complete) == shards
        resumable = () if is_whole else (".beton.partial", ".journal.partial")
        for file in partial_files(path):
            if not file.name.endswith(resumable):
                file.unlink()
        nothing = not completed_shards(marker) and not partial_files(path)
        if nothing or (last and is_whole):
            Path(marker.name).unlink(missing_ok=True)


def _check_resumed(writer: ShardWriter, task):
    """What an earlier run has finished of the shard must still hold."""
    if not writer.done:
        return
    check_unchanged(writer, task.split, task.encode)
    for number, reason in writer.reasons():
        if task.options.on_error == "stop":
            _stop(task, number, reason)
    finished = f"{writer.done:,} of {len(writer.shard.items):,}"
    print(f"{writer.shard.path}: continues behind the {finished} images that are finished", file=sys.stderr)


def _fill(writer: ShardWriter, task, advance):
    """Adds the shard's items that are not yet in it."""
    split, options = task.split, task.options
    rest = writer.shard.items[writer.done :]
    results = encode_parallel(split.items, task.encode, workers=options.workers, numbers=rest)
    with contextlib.closing(results):
        for number, result in zip(rest, results, strict=True):
            if not isinstance(result, Refused):
                result = _fitting(result, options.page_size)
            if isinstance(result, Refused) and result.unreadable:
                raise UserError(
                    f"{_item_path(task, number)}: {result.reason}; check the source's disk or network and run the same"
                    " command again"
                )
            if isinstance(result, Refused) and options.on_error == "stop":
                _stop(task, number, result.reason)
            writer.add(result, split.labels[number])
            if isinstance(result, Refused):
                task.skipped[writer.shard.path] = writer.skipped()
                _check_skipped(task, number, result.reason)
            advance()


def _check_skipped(task, number, reason):
    """So many bad images mean that something else is wrong than the images."""
    skipped, images, share = sum(task.skipped.values()), len(task.split.items), task.options.max_skipped
    if skipped > max(share * images, FEW_SKIPPED):
        raise UserError(
            f"{skipped:,} of {images:,} images of {task.split_name} cannot be stored, the last one is"
            f" {_item_path(task, number)}: {reason}; data.max_skipped={share:g} is the share that may be skipped"
        )


def _item_path(task, number):
    return os.path.join(task.source.origin, task.split.names[number])


def _stop(task, number, reason):
    raise UserError(f"{_item_path(task, number)}: {reason}; data.on_error=skip leaves such files out")


def _fitting(sample, page_size):
    """The sample, or `Refused` when one of its images is larger than a page."""
    largest = max(sample, key=lambda image: len(image.data))
    if len(largest.data) <= page_size:
        return sample
    remedy = "image.mode=jpg" if largest.mode == "raw" else "image.passthrough=false"
    return Refused(
        f"takes {len(largest.data):,} bytes, more than a page of the .beton ({page_size:,});"
        f" set image.max_side lower or {remedy}"
    )


def _complete(writer: ShardWriter, task, add_to_marker):
    """Finishes the .beton, reads its tables back, writes what describes it, and gives all of it the final names."""
    shard, split = writer.shard, task.split
    if not writer.beton.samples:
        writer.discard()
        _refuse_empty(shard, task.split_name)
    new = {end: beside(shard.path, f"{end}.partial") for end in ENDS}
    table, checksums = writer.finish()
    try:
        check_index(new[".beton"], table, checksums, classes=len(task.source.classes))
    except UserError:
        writer.discard()
        raise
    stored = np.ones(len(shard.items), bool)
    stored[writer.refused - shard.items.start] = False
    _write_lines(new[".files.txt"], (split.names[shard.items[k]] for k in np.flatnonzero(stored)))
    if len(writer.refused):
        _write_lines(new[".skipped.txt"], (f"{split.names[k]}\t{reason}" for k, reason in writer.reasons()))
    new[".xxh64"].write_bytes(checksums.data)
    _sync(new[".xxh64"])
    sidecar = {
        "format": SIDECAR_FORMAT,
        "beton": shard.path.name,
        "shard": shard.number,
        "shards": shard.count,
        "bytes": new[".beton"].stat().st_size,
        "stored": beton.stored(new[".beton"]),
        "index_xxh64": beton.index_checksum(new[".beton"]),
        "checksums_xxh64": xxh64_hexdigest(checksums.data),
        **_describe(task, table, skipped=len(writer.refused)),
        **task.settings,
    }
    _write_lines(new[".json"], [json.dumps(sidecar, indent=2, ensure_ascii=False)])
    add_to_marker()
    # All files are on the disk before the first gets its final name, so a full disk leaves the earlier ones alone.
    for end, file in new.items():
        if file.exists():
            os.replace(file, beside(shard.path, end))
        else:
            beside(shard.path, end).unlink(missing_ok=True)
    _sync(shard.path.parent)
    writer.discard()


def _refuse_empty(shard: Shard, split_name):
    reason = f"none of its {len(shard.items)} images of {split_name} can be stored"
    first = str(shard.path).removesuffix(f"-{shard.number:05}-of-{shard.count:05}.beton")
    remedy = f"; remove {first}.unfinished and its shards, and set data.shards lower" if shard.count > 1 else ""
    raise UserError(f"{shard.path} is not written: {reason}{remedy}")


def _describe(task, table, *, skipped):
    """What the sidecar says of the samples."""
    source, images = task.source, table["image"]
    per_class = np.bincount(table["label"], minlength=len(source.classes)).tolist()
    return {
        "split": task.split_name,
        "samples": len(table),
        "skipped": skipped,
        "left_out": dict(task.split.left_out),
        "classes": [_as_text(name) for name in source.classes],
        "samples_per_class": per_class,
        "smallest_and_largest": {
            side: [int(images[side].min()), int(images[side].max())] for side in ("height", "width")
        },
        "source": _as_text(source.origin),
        "layout": {"ffcv": beton.VERSION, "fields": list(table.dtype.names)},
        "pillow": PIL.__version__,
    }


def _as_text(name: str) -> str:
    """A name that is no UTF-8 with its odd bytes as \\udcxx, which a sidecar can hold."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def _sidecar(shard: Shard) -> dict:
    return json.loads(beside(shard.path, ".json").read_text(encoding="utf-8"))


def _summary(shards, path, source, speed):
    sidecars = [_sidecar(shard) for shard in shards]
    samples, skipped, size = (sum(sidecar[name] for sidecar in sidecars) for name in ("samples", "skipped", "bytes"))
    pattern, in_shards = (path, "") if len(shards) == 1 else (beside(path, "-*.beton"), f" in {len(shards)} shards")
    stored = f"{samples:,} images of {len(source.classes):,} classes{in_shards}"
    rate = f"{speed:,.0f} images/s" if speed else "finished before"
    left_out = f"; {skipped:,} left out, see {beside(pattern, '.skipped.txt')}" if skipped else ""
    return f"{pattern}: {stored}, {size / 1e6:,.1f} MB, {rate}{left_out}"


def _write_lines(path: Path, lines):
    """File names that are no UTF-8 keep their bytes."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    _sync(path)


def _sync(path: Path):
    """A file's content, or a folder's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
