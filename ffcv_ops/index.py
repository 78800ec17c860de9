"""The index of a data set: what its .beton says of every sample, as arrays. Read from one file, or from shards as one.

Stock FFCV's loader keeps Python dictionaries with an entry per sample and knows one file. Here the shards' bytes lie
one behind the other, each shard at the next multiple of the page size, and every place is one in that row; a sample's
number goes on from shard to shard. What `write_datasets.py` puts beside a file (x.json, x.xxh64) is held against it.
"""

import glob
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from ffcv.fields import IntField, RGBImageField
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_handlers, get_metadata_type
from ffcv.utils import decode_null_terminated_string

from ffcv_ops.errors import UserError


class File(NamedTuple):
    """One .beton of a data set: where its first byte lies in the row of all, and what would tell a changed file."""

    path: Path
    start: int
    data_end: int  # where the images end and the allocation table begins, counted in this file
    samples: int
    identity: tuple[int, ...]


class Index(NamedTuple):
    """All that is known of a data set but for the pixels. FFCV's loader takes it for its reader."""

    path: Path  # as it was asked for, perhaps a pattern
    files: tuple[File, ...]
    page_size: int
    handlers: dict  # FFCV's field by name, in the file's order
    metadata: np.ndarray  # a record per sample; of an image: mode, width, height, data_ptr
    places: np.ndarray  # of the stored images, rising; uint64
    sizes: np.ndarray  # of the stored images, bytes; uint32
    checksums: np.ndarray | None  # XXH64 of the stored images, uint64; None unless every file has them
    class_names: tuple[str, ...] | None

    @property
    def field_names(self) -> list[str]:
        return list(self.handlers)


def column(index: Index, field: str) -> np.ndarray:
    """The metadata of one field of all samples: for images mode, width, height and data_ptr."""
    return index.metadata[index.metadata.dtype.names[index.field_names.index(field)]]


def pages_of(image: np.ndarray, page_size: int) -> np.ndarray:
    """The page in which each image lies (an image never crosses a page's end), from the metadata of its field."""
    return image["data_ptr"] // np.uint64(page_size)


def levels_of(index: Index) -> tuple[str, ...]:
    """`image` and the RGB fields that are named as smaller levels of it, `image_256`: largest first."""
    sides = {name: int(name[6:]) for name in index.handlers if re.fullmatch(r"image_[1-9][0-9]*", name)}
    smaller = [name for name in sides if isinstance(index.handlers[name], RGBImageField)]
    return ("image", *sorted(smaller, key=sides.get, reverse=True))


def identity(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced, cut or written to: device, inode, length, time of change (ns)."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def exists(path: Path | str) -> bool:
    """Whether there is such a file or, with a `*` in its name, one that matches."""
    return bool(glob.glob(str(path))) if "*" in str(path) else Path(path).exists()


def files_of(path: Path | str) -> list[Path]:
    """The file `path` or, where its name holds a `*`, all the .beton files that match, by name."""
    matching = sorted(name for name in glob.glob(str(path)) if name.endswith(".beton"))
    found = [Path(name) for name in (matching if "*" in str(path) else [path]) if Path(name).is_file()]
    if not found:
        raise UserError(
            f"{path}: no such file; write it with `python write_datasets.py` or set --data.train, --data.val"
        )
    return found


def source_names(path: Path | str) -> Iterator[str]:
    """Where the samples come from, one after the other; nothing where that was not recorded."""
    for file in files_of(path):
        names = file.with_suffix(".files.txt")
        if names.exists():
            with names.open(encoding="utf-8", errors="backslashreplace") as lines:
                yield from (line.rstrip("\n") for line in lines)


def source_of(index: Index, sample: int) -> str:
    """The file that a sample was made from, for a message: printable. "" when it was not recorded."""
    return next(sources_from(index, sample), "")


def sources_from(index: Index, sample: int) -> Iterator[str]:
    """`source_of` this sample and of each one after it. The lists are read once, from the shard of the first on."""
    for file in index.files:
        if sample < file.samples:
            names = itertools.islice(source_names(file.path), sample, file.samples)
            for name in itertools.islice(itertools.chain(names, itertools.repeat("")), file.samples - sample):
                yield name if name.isprintable() else ascii(name)
        sample = max(sample - file.samples, 0)


def read(path: Path | str) -> Index:
    """The index of a .beton, or of all shards that match a pattern. Headers, lengths and checksums are checked here,
    the samples are not (fields.py does that). Raises UserError with one line."""
    heads = [_head(file) for file in files_of(path)]
    if "*" in str(path):
        _check_shards(path, heads)
    first = heads[0]
    metadata = np.empty(sum(head.samples for head in heads), first.sample_type)
    stored = sum(head.stored for head in heads)
    places, sizes = np.empty(stored, np.uint64), np.empty(stored, np.uint32)
    checksums = np.empty(stored, np.uint64) if all(_checksums(head).exists() for head in heads) else None
    files, start, samples, images = [], 0, 0, 0
    for head in heads:
        own, its = slice(samples, samples + head.samples), slice(images, images + head.stored)
        _read_tables(head, metadata[own], places[its], sizes[its])
        if checksums is not None:
            checksums[its] = _read_checksums(head)
        for field, name in zip(head.handlers.values(), metadata.dtype.names, strict=True):
            if isinstance(field, RGBImageField):
                metadata[own][name]["data_ptr"] += np.uint64(start)
        places[its] += np.uint64(start)
        files.append(File(head.path, start, head.table, head.samples, head.identity))
        start += -(-head.length // head.page_size) * head.page_size
        samples, images = own.stop, its.stop
    return Index(
        Path(path), tuple(files), first.page_size, first.handlers, metadata, places, sizes, checksums, first.class_names
    )


# --- one file ------------------------------------------------------------------------------------------------------


class _Head(NamedTuple):
    """What the beginning of a file and its x.json say."""

    path: Path
    said: dict  # x.json, or nothing
    class_names: tuple[str, ...] | None
    header: bytes  # header and descriptors
    page_size: int
    samples: int
    stored: int  # images
    table: int  # where the allocation table begins
    handlers: dict
    sample_type: np.dtype
    identity: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.identity[2]


def sidecar(path: Path) -> Path:
    """The JSON file that describes a .beton."""
    return Path(path).with_suffix(".json")


def _said(path: Path) -> tuple[dict, tuple[str, ...] | None]:
    """What x.json says, and the names of the classes in it."""
    described = sidecar(path)
    if not described.exists():
        return {}, None
    try:
        said = json.loads(described.read_text(encoding="utf-8"))
        return said, tuple(str(name).encode("utf-8", "backslashreplace").decode() for name in said["classes"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{described}: not the description of a .beton ({error!r}); write the data set again"
        ) from error


def _head(path: Path) -> _Head:
    """The beginning of a file, after checking that all that it announces fits into the file's length."""
    said, class_names = _said(path)
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        length, beginning = stat.st_size, file.read(HeaderType.itemsize)
        if length < HeaderType.itemsize:
            raise UserError(f"{path}: {length} bytes are no .beton file; write it again")
        if said.get("bytes", length) != length:
            raise UserError(
                f"{path}: truncated or another file: {length} bytes, {sidecar(path)} says {said['bytes']};"
                " write or copy both again"
            )
        header = np.frombuffer(beginning, HeaderType)[0]
        samples, table, fields = (int(header[name]) for name in ("num_samples", "alloc_table_ptr", "num_fields"))
        if header["version"] != CURRENT_VERSION or not 1 <= fields <= 64:
            raise UserError(f"{path}: not a .beton file (version {header['version']} instead of {CURRENT_VERSION})")
        if samples == 0:
            raise UserError(f"{path}: holds no samples (an unfinished conversion?); write it again")
        descriptors = file.read(fields * FieldDescType.itemsize)
    damaged = UserError(f"{path}: truncated or damaged ({length} bytes, table at {table}); write or copy it again")
    if len(descriptors) != fields * FieldDescType.itemsize or header["page_size"] == 0:
        raise damaged
    handlers = _handlers(path, np.frombuffer(descriptors, FieldDescType))
    sample_type = get_metadata_type(list(handlers.values()))
    tables = HeaderType.itemsize + len(descriptors) + samples * sample_type.itemsize
    stored, rest = divmod(length - table, ALLOC_TABLE_TYPE.itemsize)
    if not tables <= table <= length or rest or stored < samples:
        raise damaged
    return _Head(
        path, said, class_names, beginning + descriptors, int(header["page_size"]), samples, stored, table, handlers,
        sample_type, identity(stat),
    )  # fmt: skip


def _handlers(path, descriptors):
    """FFCV's fields by name; those that training needs must be there."""
    try:
        names = [decode_null_terminated_string(one["name"]) for one in descriptors]
        handlers = dict(zip(names, get_handlers(descriptors), strict=True))
    except (AssertionError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable .beton file ({error}); write it again") from error
    if not isinstance(handlers.get("image"), RGBImageField) or not isinstance(handlers.get("label"), IntField):
        found = ", ".join(names)
        raise UserError(f"{path}: needs an RGB field `image` and an integer field `label`, has: {found}")
    if len(handlers) != len(names) or None in handlers.values():
        raise UserError(f"{path}: its fields are not all known and of different names; write it again")
    return handlers


def _read_tables(head: _Head, metadata, places, sizes) -> None:
    """Fills in the samples' metadata, and where the images lie and how long they are, by place."""
    digest = xxhash.xxh64(head.header)
    with open(head.path, "rb") as file:
        file.seek(len(head.header))
        if file.readinto(metadata.view(np.uint8)) != metadata.nbytes:
            raise UserError(f"{head.path}: was cut while it was read; write or copy it again")
        digest.update(metadata.view(np.uint8))
        file.seek(head.table)
        table = np.fromfile(file, ALLOC_TABLE_TYPE, head.stored)
        changed = identity(os.fstat(file.fileno())) != head.identity
    digest.update(table.view(np.uint8))
    if changed or len(table) != head.stored:
        raise UserError(f"{head.path}: changed while it was read; write or copy it again")
    if head.said.get("index_xxh64", digest.hexdigest()) != digest.hexdigest():
        raise UserError(f"{head.path}: header or tables are not those that were written; write or copy it again")
    places[:] = table["ptr"]
    sizes[:] = np.minimum(table["size"], np.iinfo(np.uint32).max)  # none is longer than a page
    if (places[1:] < places[:-1]).any():
        by_place = np.argsort(places, kind="stable")
        places[:], sizes[:] = places[by_place], sizes[by_place]


def _checksums(head: _Head) -> Path:
    """The file of checksums. Raises UserError where x.json says that there is one, and there is none."""
    path = head.path.with_suffix(".xxh64")
    if "checksums_xxh64" in head.said and not path.exists():
        raise UserError(f"{path}: no such file, but {sidecar(head.path)} says that it belongs to it; copy it too")
    return path


def _read_checksums(head: _Head) -> np.ndarray:
    path = _checksums(head)
    read = path.read_bytes()
    expected = head.said.get("checksums_xxh64")
    if len(read) != 8 * head.stored or expected not in (None, xxhash.xxh64_hexdigest(read)):
        raise UserError(f"{path}: not the checksums of {head.path}; write or copy both again")
    return np.frombuffer(read, "<u8")


# --- shards --------------------------------------------------------------------------------------------------------


def _check_shards(path: Path | str, heads: list[_Head]) -> None:
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


def _place(head: _Head) -> tuple[int, int] | None:
    """(number, how many) of a shard: what x.json says and, if there is a number in it, the name."""
    named = re.search(r"-(\d{5,})-of-(\d{5,})$", head.path.stem)
    by_name = (int(named[1]), int(named[2])) if named else None
    said = (head.said.get("shard"), head.said.get("shards"))
    if said == (None, None):
        return by_name
    if by_name not in (None, said):
        raise UserError(f"{head.path}: shard {said[0]} of {said[1]}, as {sidecar(head.path)} says; rename it back")
    return said


def _kind(head: _Head) -> dict:
    """What all shards must have in common."""
    fields = [(name, type(handler)) for name, handler in head.handlers.items()]
    return {
        "classes": head.class_names, "fields": fields, "page size": head.page_size, "split": head.said.get("split"),
        "source": head.said.get("source"), "conversion": head.said.get("conversion"),
    }  # fmt: skip
