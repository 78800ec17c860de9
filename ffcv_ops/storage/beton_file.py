"""One .beton: its header and tables, and what `write_datasets.py` puts beside it (x.json, x.xxh64).

    header | field descriptors | metadata of each sample | zeros | images in pages | allocation table

What lies beside a file is held against it here; what the file says of itself, in validate.py.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from ffcv_ops.errors import UserError, reading
from ffcv_ops.files import MOST_TEXT, open_regular, read_regular
from ffcv_ops.stock import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    JSONField,
    RGBImageField,
    decode_null_terminated_string,
    get_handlers,
    get_metadata_type,
)


class Head(NamedTuple):
    """What the beginning of a file and its x.json say."""

    path: Path
    sidecar: dict  # x.json, or nothing
    class_names: tuple[str, ...] | None
    header: bytes  # header and descriptors
    page_size: int
    samples: int
    images: int  # stored ones: entries of the allocation table
    tables_end: int  # where the metadata end
    allocations: int  # where the allocation table begins, and no image may reach to
    handlers: dict  # FFCV's field by name, in the file's order
    sample_type: np.dtype
    checksums: bool  # whether x.xxh64 is there
    identity: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.identity[2]


def identity(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced, cut or written to: device, inode, length, time of change (ns); and last the
    time that nobody can put back, which new rights, names or links of the file change too."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def beside(path: Path, end: str) -> Path:
    """x.json, x.xxh64 or x.files.txt of x.beton, by its `end`: beside it or, where x.beton is a link and has none
    there, beside what the link leads to. A link that leads nowhere counts as there."""
    own = Path(path).with_suffix(end)
    if os.path.lexists(own) or not Path(path).is_symlink():
        return own
    target = Path(os.path.realpath(path)).with_suffix(end)
    return target if os.path.lexists(target) else own


def sidecar(path: Path) -> Path:
    """The JSON file that describes a .beton."""
    return beside(path, ".json")


def _read_sidecar(path: Path) -> tuple[dict, tuple[str, ...] | None]:
    """What x.json says, and the names of the classes in it."""
    described = sidecar(path)
    if not os.path.lexists(described):
        return {}, None
    try:
        said = json.loads(read_regular(described))
        if not isinstance(said["classes"], list):
            raise TypeError("classes is no list")
        names = tuple(str(name).encode("utf-8", "backslashreplace").decode() for name in said["classes"])
        return said, names or None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{described}: not the description of a .beton ({error!r}); write the data set again"
        ) from error


def read_head(path: Path) -> Head:
    """The beginning of a file, after checking that all that it announces fits into the file's length."""
    said, class_names = _read_sidecar(path)
    checksums = os.path.lexists(beside(path, ".xxh64"))
    with reading(path), open_regular(path) as file:
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
    if len(descriptors) != fields * FieldDescType.itemsize:
        raise damaged
    handlers = _handlers(path, np.frombuffer(descriptors, FieldDescType))
    sample_type = get_metadata_type(list(handlers.values()))
    tables_end = HeaderType.itemsize + len(descriptors) + samples * sample_type.itemsize
    images, rest = divmod(length - table, ALLOC_TABLE_TYPE.itemsize)
    if not tables_end <= table <= length or rest or images < samples:
        raise damaged
    return Head(
        path, said, class_names, beginning + descriptors, int(header["page_size"]), samples, images, tables_end, table,
        handlers, sample_type, checksums, identity(stat),
    )  # fmt: skip


def _handlers(path, descriptors):
    """FFCV's fields by name; there must be one for the image."""
    try:
        names = [decode_null_terminated_string(one["name"]) for one in descriptors]
        handlers = dict(zip(names, get_handlers(descriptors), strict=True))
        is_json = [TYPE_ID_HANDLER[one["type_id"]] is JSONField for one in descriptors]  # FFCV takes it for bytes
        handlers |= {name: JSONField() for name, found in zip(names, is_json, strict=True) if found}
    except Exception as error:  # FFCV's fields read their arguments unchecked: whatever they raise
        raise UserError(f"{path}: not a readable .beton file ({error!a}); write it again") from error
    if not isinstance(handlers.get("image"), RGBImageField):
        found = ", ".join(name if name.isprintable() else ascii(name) for name in names)
        raise UserError(f"{path}: needs an RGB field `image`, has: {found}")
    if len(handlers) != len(names) or None in handlers.values():
        raise UserError(f"{path}: its fields are not all known and of different names; write it again")
    return handlers


def read_tables(head: Head, metadata: np.ndarray) -> np.ndarray:
    """Fills in the samples' metadata and returns the allocation table, by place."""
    digest = xxhash.xxh64(head.header)
    with reading(head.path), open_regular(head.path) as file:
        file.seek(len(head.header))
        if file.readinto(metadata.view(np.uint8)) != metadata.nbytes:
            raise UserError(f"{head.path}: was cut while it was read; write or copy it again")
        digest.update(metadata.view(np.uint8))
        file.seek(head.allocations)
        table = np.fromfile(file, ALLOC_TABLE_TYPE, head.images)
        changed = identity(os.fstat(file.fileno())) != head.identity
    digest.update(table.view(np.uint8))
    if changed or len(table) != head.images:
        raise UserError(f"{head.path}: changed while it was read; write or copy it again")
    if head.sidecar.get("index_xxh64", digest.hexdigest()) != digest.hexdigest():
        raise UserError(f"{head.path}: header or tables are not those that were written; write or copy it again")
    if (table["ptr"][1:] < table["ptr"][:-1]).any():
        table = table[np.argsort(table["ptr"], kind="stable")]
    return table


def read_checksums(head: Head) -> np.ndarray | None:
    """XXH64 of each stored image, by place (uint64); None where there are none, and x.json says of none."""
    path = beside(head.path, ".xxh64")
    if not head.checksums:
        if "checksums_xxh64" not in head.sidecar:
            return None
        raise UserError(f"{path}: no such file, but {sidecar(head.path)} says that it belongs to it; copy it too")
    read = read_regular(path, 8 * head.images + MOST_TEXT)
    expected = head.sidecar.get("checksums_xxh64")
    if len(read) != 8 * head.images or expected not in (None, xxhash.xxh64_hexdigest(read)):
        raise UserError(f"{path}: not the checksums of {head.path}; write or copy both again")
    return np.frombuffer(read, "<u8")
