"""One split of a source -> x.beton, with x.json, x.xxh64, x.files.txt and, when images were left out, x.skipped.txt; or
several such files, the shards of the split.

Everything is written under temporary names, and read back on the way. Only then do the files take their final names,
the .beton last: what has a final name is complete, and an older file stays until the new one takes its place. When a
conversion is stopped, what it has finished stays under the temporary names, and the same one goes on from there.
"""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from xxhash import xxh64_hexdigest

from conversion import beton
from conversion.encode import Refused
from conversion.progress import progress
from conversion.shards import beside, parts_of, refuse_other_shards, remains
from conversion.sources import Source
from conversion.unfinished import Unfinished, begin_or_go_on, identity_of, is_complete, note, noted, probe
from conversion.workers import encoded
from ffcv_ops.errors import UserError
from ffcv_ops.files import locked

SIDECAR_FORMAT = 3
ENDS = (".files.txt", ".skipped.txt", ".xxh64", ".json", ".beton")


def convert(
    source: Source,
    split_name: str,
    path: Path,
    encode: functools.partial,
    *,
    on_error: str,
    workers: int,
    page_size: int,
    images: Sequence[str] = beton.SINGLE,
    shards: int = 1,
    last: bool = True,
) -> str:
    """Writes the split `split_name` of `source` to `path`, or to so many shards of it. Returns a line that says what is
    there now. Unless it is the `last` split, x.unfinished stays, so that a stop in the next one does not begin this one
    again; `forget` removes it.

    encode: turns an item, with `read` of the source, into `Encoded`, one for each field of `images`; its keywords are
    the settings in the sidecar.
    on_error: `stop` ends at the first item, in the split's order, that cannot be stored; `skip` leaves it out.
    """
    began = time.monotonic()
    split = source.splits[split_name]
    parts = parts_of(path, len(split.items), shards)
    settings = {"page_size": page_size, **encode.keywords}
    encode = functools.partial(encode, read=source.read)
    found = 0
    with (
        _one_line(path),
        locked(beside(path, ".unfinished"), path) as marker,
        _tidied(path, marker, parts, last) as complete,
    ):
        refuse_other_shards(path, len(parts))
        identity = identity_of(source, split_name, len(parts), settings)
        read_back = begin_or_go_on(marker, identity, path)
        before = [part for part in parts if part.shard in read_back and is_complete(part, identity, split, encode)]
        if 0 < len(before) < len(parts):
            print(f"{path}: {len(before)} of {len(parts)} files are finished", file=sys.stderr)
        with contextlib.ExitStack() as bar:
            advance = bar.enter_context(progress(split_name, len(split.items)))
            for part in parts:
                if part in before:
                    found += len(part.items)
                    advance(0, found=len(part.items))
                else:
                    with Unfinished(part, beton.begin(len(part.items), page_size, images)) as unfinished:
                        _go_on(unfinished, source, split, encode, on_error)
                        found += unfinished.done
                        advance(0, found=unfinished.done)
                        _fill(unfinished, source, split, encode, advance, on_error=on_error, workers=workers)
                        if part is parts[-1]:
                            bar.close()
                        settled = {"conversion": identity["id"], "settings": {"on_error": on_error, **settings}}
                        _complete(unfinished, source, split_name, settled, functools.partial(note, marker, part))
                complete.append(part)
    return _summary(parts, path, source, (len(split.items) - found) / (time.monotonic() - began))


@contextlib.contextmanager
def _one_line(path: Path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def forget(path: Path):
    """A complete conversion to `path` is begun anew the next time, since images may change under their names."""
    with contextlib.suppress(UserError), locked(beside(path, ".unfinished"), path) as marker:
        os.unlink(marker.name)


@contextlib.contextmanager
def _tidied(path, marker, parts, last):
    """Gives a list for the parts that are complete. Afterwards nothing temporary is left but what one can go on with,
    and `marker` only while there is something to go on with, or notes of finished parts in it."""
    complete = []
    try:
        yield complete
    finally:
        kept = (".beton.partial", ".journal.partial") if len(complete) < len(parts) else ()
        for file in remains(path):
            if not file.name.endswith(kept):
                file.unlink()
        nothing = not noted(marker) and not remains(path)
        if nothing or (last and len(complete) == len(parts)):
            Path(marker.name).unlink(missing_ok=True)


def _go_on(unfinished: Unfinished, source, split, encode, on_error):
    """Says what is there, after a look at whether it still holds."""
    if not unfinished.done:
        return
    probe(unfinished, split, encode)
    for number, reason in unfinished.reasons():
        if on_error == "stop":
            _stop(source, split, number, reason)
    of = f"{unfinished.done:,} of {len(unfinished.part.items):,}"
    print(f"{unfinished.part.path}: goes on behind the {of} images that are finished", file=sys.stderr)


def _fill(unfinished: Unfinished, source, split, encode, advance, *, on_error, workers):
    """Adds the items that are not yet in it."""
    page_size, items = unfinished.growing.page_size, unfinished.part.items
    rest = items[unfinished.done :]
    results = encoded(split.items, encode, workers=workers, parts=[rest])
    with contextlib.closing(results):
        for number, result in zip(rest, results, strict=True):
            if not isinstance(result, Refused):
                result = _fitting(result, page_size)
            if isinstance(result, Refused) and on_error == "stop":
                _stop(source, split, number, result.reason)
            unfinished.add(result, split.labels[number])
            advance()


def _stop(source, split, number, reason):
    file = os.path.join(source.origin, split.names[number])
    raise UserError(f"{file}: {reason}; data.on_error=skip leaves such files out")


def _fitting(sample, page_size):
    """The sample, or `Refused` when one of its images is larger than a page."""
    largest = max(sample, key=lambda image: len(image.data))
    if len(largest.data) <= page_size:
        return sample
    other = "image.mode=jpg" if largest.mode == "raw" else "image.passthrough=false"
    return Refused(
        f"takes {len(largest.data):,} bytes, more than a page of the .beton ({page_size:,});"
        f" set image.max_side lower or {other}"
    )


def _complete(unfinished: Unfinished, source, split_name, settled, note_read_back):
    """Finishes the .beton, reads its tables back, writes what describes it, and gives all of it the final names."""
    part, split = unfinished.part, source.splits[split_name]
    if not unfinished.growing.samples:
        unfinished.discard()
        none = f"none of the {len(part.items)} images of {split_name} in it can be stored"
        every = str(part.path).removesuffix(f"-{part.shard:05}-of-{part.shards:05}.beton")
        fewer = f"; remove {every}.unfinished and its shards, and give fewer --data.shards" if part.shards > 1 else ""
        raise UserError(f"{part.path} is not written, since {none}{fewer}")
    new = {end: beside(part.path, f"{end}.partial") for end in ENDS}
    table, checksums = unfinished.finish()
    try:
        beton.check_index(new[".beton"], table, checksums, classes=len(source.classes))
    except UserError:
        unfinished.discard()
        raise
    kept = np.ones(len(part.items), bool)
    kept[unfinished.refused - part.items.start] = False
    _write_lines(new[".files.txt"], (split.names[part.items[k]] for k in np.flatnonzero(kept)))
    if len(unfinished.refused):
        _write_lines(new[".skipped.txt"], (f"{split.names[k]}\t{reason}" for k, reason in unfinished.reasons()))
    new[".xxh64"].write_bytes(checksums.data)
    _sync(new[".xxh64"])
    sidecar = {
        "format": SIDECAR_FORMAT,
        "beton": part.path.name,
        "shard": part.shard,
        "shards": part.shards,
        "bytes": new[".beton"].stat().st_size,
        "stored": beton.stored(new[".beton"]),
        "index_xxh64": beton.index_checksum(new[".beton"]),
        "checksums_xxh64": xxh64_hexdigest(checksums.data),
        **_describe(source, split_name, table, skipped=len(unfinished.refused)),
        **settled,
    }
    _write_lines(new[".json"], [json.dumps(sidecar, indent=2, ensure_ascii=False)])
    note_read_back()
    for end, file in new.items():
        if file.exists():
            os.replace(file, beside(part.path, end))
        else:
            beside(part.path, end).unlink(missing_ok=True)
    _sync(part.path.parent)
    unfinished.discard()


def _describe(source, split_name, table, *, skipped):
    """What the sidecar says of the samples."""
    per_class = np.bincount(table["label"], minlength=len(source.classes)).tolist()
    sides = {side: [int(table["image"][side].min()), int(table["image"][side].max())] for side in ("height", "width")}
    return {
        "split": split_name,
        "samples": len(table),
        "skipped": skipped,
        "classes": [_readable(name) for name in source.classes],
        "samples_per_class": per_class,
        "smallest_and_largest": sides,
        "source": _readable(source.origin),
        "layout": {"ffcv": beton.VERSION, "fields": list(table.dtype.names)},
        "pillow": PIL.__version__,
    }


def _readable(name: str) -> str:
    """A name that is no UTF-8 with its odd bytes as \\udcxx, which a description can hold."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def _summary(parts, path, source, speed):
    described = [json.loads(beside(part.path, ".json").read_text(encoding="utf-8")) for part in parts]
    samples, skipped, size = (sum(one[name] for one in described) for name in ("samples", "skipped", "bytes"))
    every, of = (path, "") if len(parts) == 1 else (beside(path, "-*.beton"), f" in {len(parts)} shards")
    stored = f"{samples:,} images of {len(source.classes):,} classes{of}"
    rate = f"{speed:,.0f} images/s" if speed else "finished before"
    left_out = f"; {skipped:,} left out, see {beside(every, '.skipped.txt')}" if skipped else ""
    return f"{every}: {stored}, {size / 1e6:,.1f} MB, {rate}{left_out}"


def _write_lines(path: Path, lines):
    """File names that are no UTF-8 keep their bytes."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path):
    """A file's content, or a folder's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
