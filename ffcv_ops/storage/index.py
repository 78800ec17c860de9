"""The index of a data set: what its .beton says of every sample, as arrays. Read from one file, or from shards as one.

Stock FFCV's loader keeps Python dictionaries with an entry per sample and knows one file. Here the shards' bytes lie
one behind the other, each shard at the next multiple of the page size, and every place is one in that row; a sample's
number goes on from shard to shard.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffcv_ops.errors import UserError, one_line
from ffcv_ops.stock import BytesField, IntField, NDArrayField, RGBImageField
from ffcv_ops.storage import beton_file, sources, validate
from ffcv_ops.storage.fingerprint import fingerprint
from ffcv_ops.storage.info import MOST_CLASSES, DatasetInfo
from ffcv_ops.storage.shards import check_shards, files_of


class File(NamedTuple):
    """One .beton of a data set: where its first byte lies in the row of all, and what would tell a changed file."""

    path: Path
    start: int
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


def describe(path: Path | str) -> DatasetInfo:
    """What a .beton, or the shards that match a pattern, hold. The image fields are `image` and perhaps smaller levels
    of it, the label is `label`. Raises UserError with one clear line."""
    index = open_index(path)
    if not isinstance(index.handlers.get("label"), IntField):
        found = ", ".join(map(one_line, index.handlers))
        raise UserError(f"{path}: needs an integer field `label`, has: {found}")
    labels, images = column(index, "label"), column(index, "image")["data_ptr"]
    classes = max(int(labels.max()) + 1, len(index.class_names or ()))
    if classes > MOST_CLASSES:
        sample = int(labels.argmax())
        name = sources.named(sample, sources.source_of(index, sample))
        raise UserError(f"{path}: {name} has the label {labels[sample]:,}; {MOST_CLASSES:,} classes are the most")
    content, empty = fingerprint(index, labels, images), classes - len(np.unique(labels))
    info = DatasetInfo(index.path, len(index.metadata), classes, index.class_names, levels_of(index), content)
    return info._replace(empty=empty, checksums=index.checksums is not None)


def column(index: Index, field: str) -> np.ndarray:
    """The metadata of one field of all samples: for images mode, width, height and data_ptr."""
    return index.metadata[index.metadata.dtype.names[index.field_names.index(field)]]


def pointers_of(field, entries: np.ndarray) -> np.ndarray | None:
    """Where the stored values of a field begin: a view of its metadata. None where the metadata are the values."""
    if isinstance(field, RGBImageField):
        return entries["data_ptr"]
    if isinstance(field, BytesField):
        return entries["ptr"]
    return entries if isinstance(field, NDArrayField) else None


def pages_of(image: np.ndarray, page_size: int) -> np.ndarray:
    """The page in which each image lies (an image never crosses a page's end), from the metadata of its field."""
    return image["data_ptr"] // np.uint64(page_size)


def levels_of(index: Index) -> tuple[str, ...]:
    """`image` and the RGB fields that are named as smaller levels of it, `image_256`: largest first."""
    return validate.levels(index.handlers)


def open_index(path: Path | str) -> Index:
    """The index of a .beton, or of all shards that match a pattern: data/in21k_train-*.beton. All that the files and
    what lies beside them say is held against each other before. Raises UserError with one line."""
    heads = [beton_file.read_head(file) for file in files_of(path)]
    if "*" in str(path):
        check_shards(path, heads)
    first = heads[0]
    metadata = np.empty(sum(head.samples for head in heads), first.sample_type)
    images = sum(head.images for head in heads)
    places, sizes = np.empty(images, np.uint64), np.empty(images, np.uint32)
    checksums = np.empty(images, np.uint64) if all(head.checksums for head in heads) else None
    files, start, sample, image = [], 0, 0, 0
    for head in heads:
        own_samples, own_images = slice(sample, sample + head.samples), slice(image, image + head.images)
        records = metadata[own_samples]
        table = beton_file.read_tables(head, records)
        validate.check(head, records, table)
        places[own_images], sizes[own_images] = table["ptr"] + np.uint64(start), table["size"]
        own_checksums = beton_file.read_checksums(head)
        if checksums is not None:
            checksums[own_images] = own_checksums
        for field, name in zip(head.handlers.values(), metadata.dtype.names, strict=True):
            places_of = pointers_of(field, records[name])
            if places_of is not None:
                places_of += np.uint64(start)
        files.append(File(head.path, start, head.samples, head.identity))
        start += -(-head.length // head.page_size) * head.page_size
        sample, image = own_samples.stop, own_images.stop
    return Index(
        Path(path), tuple(files), first.page_size, first.handlers, metadata, places, sizes, checksums, first.class_names
    )
