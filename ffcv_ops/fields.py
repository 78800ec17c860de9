"""What a .beton file holds, checked before anything is trained on it.

Stock FFCV opens a truncated or foreign file and then crashes, hangs or hands out wrong pixels; `describe` reads the
same header, fields, metadata and allocation table and refuses a file in which they contradict each other or the
file's length. Names of classes and sources come from the files that `write_datasets.py` puts beside the .beton.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType

from ffcv_ops.errors import BadInput


class Beton(NamedTuple):
    """A checked .beton: its path, number of samples and classes, class names where a sidecar has them, and its image
    fields from the largest to the smallest: ("image",) or a pyramid, ("image", "image_256", "image_160")."""

    path: Path
    samples: int
    classes: int
    class_names: tuple[str, ...] | None
    levels: tuple[str, ...] = ("image",)


def sidecar(path: Path) -> Path:
    """The JSON file that describes a .beton."""
    return Path(path).with_suffix(".json")


def source_of(path: Path, index: int) -> str:
    """The file that sample `index` was made from, or "" when it was not recorded."""
    names = Path(path).with_suffix(".files.txt")
    if not names.exists():
        return ""
    with names.open(encoding="utf-8") as lines:
        return next((line.rstrip("\n") for number, line in enumerate(lines) if number == index), "")


def levels_of(reader: Reader) -> tuple[str, ...]:
    """`image` and the RGB fields that are named as smaller levels of it, `image_256`: largest first."""
    fields = dict(zip(reader.field_names, reader.handlers.values(), strict=True))
    sides = {name: int(name[6:]) for name in fields if re.fullmatch(r"image_[1-9][0-9]*", name)}
    smaller = [name for name in sides if isinstance(fields[name], RGBImageField)]
    return ("image", *sorted(smaller, key=sides.get, reverse=True))


def column(reader: Reader, field: str) -> np.ndarray:
    """The metadata of one field of all samples: for images mode, width, height and data_ptr."""
    return reader.metadata[reader.metadata.dtype.names[reader.field_names.index(field)]]


def pages_of(image: np.ndarray, page_size: int) -> np.ndarray:
    """The page in which each image lies (an image never crosses a page's end), from the metadata of its field."""
    return image["data_ptr"] // np.uint64(page_size)


def image_pages(path: Path | str) -> np.ndarray:
    """The page of each sample's full-size image."""
    reader = Reader(str(path))
    return pages_of(column(reader, "image"), reader.page_size)


def describe(path: Path | str) -> Beton:
    """Checks the structure of a .beton with fields `image`, perhaps smaller levels of it, and `label`; raises BadInput
    with one clear line."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(
            f"{path}: no such file; write it with `python write_datasets.py` or set --data.train, --data.val"
        )
    header = _header(path)
    try:
        reader = Reader(str(path))
    except (AssertionError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a readable .beton file ({error}); write it again") from error
    fields = dict(zip(reader.field_names, reader.handlers.values(), strict=True))
    if not isinstance(fields.get("image"), RGBImageField) or not isinstance(fields.get("label"), IntField):
        found = ", ".join(reader.field_names)
        raise BadInput(f"{path}: needs an RGB field `image` and an integer field `label`, has: {found}")
    levels = levels_of(reader)
    labels = _check_samples(path, reader, header, levels)
    named = _sidecar_classes(path)
    classes = max(int(labels.max()) + 1, len(named or ()))
    return Beton(path, int(header["num_samples"]), classes, named, levels)


def _header(path: Path) -> np.void:
    """The header, after checking that all that it announces fits into the file."""
    length = os.path.getsize(path)
    if length < HeaderType.itemsize:
        raise BadInput(f"{path}: {length} bytes are no .beton file; write it again")
    header = np.fromfile(path, HeaderType, 1)[0]
    if header["version"] != CURRENT_VERSION or not 1 <= header["num_fields"] <= 64:
        raise BadInput(f"{path}: not a .beton file (version {header['version']} instead of {CURRENT_VERSION})")
    if header["num_samples"] == 0:
        raise BadInput(f"{path}: holds no samples (an unfinished conversion?); write it again")
    fields_end = HeaderType.itemsize + int(header["num_fields"]) * FieldDescType.itemsize
    table = int(header["alloc_table_ptr"])
    least = fields_end + 8 * int(header["num_samples"])  # the label alone takes 8 bytes of metadata
    table_bytes = length - table
    if not least <= table <= length or table_bytes % ALLOC_TABLE_TYPE.itemsize:
        raise BadInput(f"{path}: truncated or damaged ({length} bytes, table at {table}); write or copy it again")
    return header


def _check_samples(path: Path, reader: Reader, header: np.void, levels: tuple[str, ...]) -> np.ndarray:
    """Checks that every image lies inside the file, in a recorded region of a plausible size, and that smaller levels
    are smaller pictures of the same shape; returns the labels."""
    samples, table = int(header["num_samples"]), reader.alloc_table
    columns = dict(zip(reader.field_names, reader.metadata.dtype.names, strict=True))
    if len(reader.metadata) != samples or len(table) < samples:
        raise BadInput(
            f"{path}: truncated or damaged: not all of its {samples} samples are there; write or copy it again"
        )
    labels = reader.metadata[columns["label"]]
    table = table[np.argsort(table["ptr"], kind="stable")]
    full = larger = reader.metadata[columns["image"]]
    bad = labels < 0
    for name in levels:
        image = reader.metadata[columns[name]]
        bad |= _damaged(image, table, int(header["alloc_table_ptr"])) | _not_a_level(image, larger, full)
        larger = image
    if bad.any():
        first = int(np.argmax(bad))
        raise BadInput(
            f"{path}: {int(bad.sum())} of {samples} entries are damaged, the first is sample {first}"
            f" {source_of(path, first)}; write or copy the file again"
        )
    return labels


def _damaged(image: np.ndarray, table: np.ndarray, data_end: int) -> np.ndarray:
    """Which entries point outside of the regions in `table` (sorted by place), or to one of an impossible size."""
    found = np.searchsorted(table["ptr"], image["data_ptr"])
    region = table[np.minimum(found, len(table) - 1)]
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    return (
        (found == len(table))
        | (region["ptr"] != image["data_ptr"])
        | (region["size"] == 0)
        | (region["ptr"] > data_end)
        | (region["size"] > data_end - np.minimum(region["ptr"], data_end))
        | (height == 0)
        | (width == 0)
        | (image["mode"] > 1)
        | ((image["mode"] == 1) & (region["size"].astype(np.int64) != 3 * height * width))
    )


def _not_a_level(image: np.ndarray, larger: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Which entries exceed those of the level before, or are no full image reduced in proportion: no scale brings both
    of its sides to within a pixel (both sizes were rounded from the original's)."""
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    full_height, full_width = full["height"].astype(np.int64), full["width"].astype(np.int64)
    return (
        (height > larger["height"])
        | (width > larger["width"])
        | ((height - 1) * full_width > (width + 1) * full_height)
        | ((width - 1) * full_height > (height + 1) * full_width)
    )


def _sidecar_classes(path: Path) -> tuple[str, ...] | None:
    described = sidecar(path)
    if not described.exists():
        return None
    try:
        names = json.loads(described.read_text(encoding="utf-8"))["classes"]
        return tuple(str(name) for name in names)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{described}: not the description of a .beton ({error!r}); write the data set again") from error
