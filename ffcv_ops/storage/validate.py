"""What a .beton says of itself, held against everything in it that could contradict it, before an image is read.

Stock FFCV opens a truncated or foreign file and then crashes, hangs or hands out wrong pixels. The header, the samples'
metadata, the allocation table and the file's length say most things twice, and a reader goes by one of them: memory
behind a page, or another sample's image, is what it shows where they differ. FFCV's writer and ours keep these rules:

* A page has 2^21 to 2^31 bytes, a power of two. Images begin at the first page behind the samples' metadata.
* Images follow each other without overlapping. None reaches over a page's end, or into the allocation table.
* Every image is entered for a sample that is there, and a sample's metadata point at its own images.
* A raw image has the bytes of its pixels. A smaller level is the full image, reduced in proportion.
"""

import re

import numpy as np

from ffcv_ops.errors import UserError
from ffcv_ops.stock import IntField, RGBImageField
from ffcv_ops.storage import sources
from ffcv_ops.storage.beton_file import Head

MOST_PIXELS = 100_000_000  # of one image, as in a conversion; a thread that decodes takes four bytes for each
PAGE_SIZES = tuple(2**k for k in range(21, 32))  # bytes, as FFCV's writer allows them
_AT_ONCE = 1 << 20  # samples or images; bounds the memory of a check


def levels(handlers: dict) -> tuple[str, ...]:
    """Of a file's fields `image` and the RGB fields that are named as smaller levels of it: largest first."""
    sides = {name: int(name[6:]) for name in handlers if re.fullmatch(r"image_[1-9][0-9]*", name)}
    smaller = [name for name in sides if isinstance(handlers[name], RGBImageField)]
    return ("image", *sorted(smaller, key=sides.get, reverse=True))


def check(head: Head, metadata: np.ndarray, table: np.ndarray) -> None:
    """Raises UserError where a file contradicts itself. metadata: a record per sample; table: the allocation table, by
    place."""
    if fault := _fault_of_table(head, table):
        raise UserError(f"{head.path}: damaged: {fault}; write or copy it again")
    entries = table, np.ascontiguousarray(table["ptr"])
    damaged = [
        begin + np.flatnonzero(_damaged(head, metadata[begin : begin + _AT_ONCE], entries, begin))
        for begin in _parts(len(metadata))
    ]
    if count := sum(map(len, damaged)):
        first = int(next(part[0] for part in damaged if len(part)))
        source = next(sources.of_file(head.path, first), "")
        raise UserError(
            f"{head.path}: {count} of {head.samples} entries are damaged, the first is"
            f" {sources.named(first, source)}; write or copy the file again"
        )


def _parts(count):
    return range(0, count, _AT_ONCE)


def _fault_of_table(head: Head, table: np.ndarray) -> str | None:
    """How page size and allocation table contradict each other, the length of the metadata or the file's."""
    page, end = head.page_size, head.allocations
    if page not in PAGE_SIZES:
        return f"a page size of {page} bytes, which is no power of two from 2^21 to 2^31"
    first = -(-head.tables_end // page) * page
    if table["ptr"][0] != first:
        return f"images begin at byte {table['ptr'][0]}, but the first page behind the metadata at {first}"
    if table["ptr"][-1] > end:
        return f"an image at byte {table['ptr'][-1]}, behind the images' end at {end}"
    for begin in _parts(len(table)):
        entry = table[begin : begin + _AT_ONCE]
        place, size = entry["ptr"], entry["size"]
        following = np.append(table["ptr"][begin + 1 : begin + _AT_ONCE + 1], np.uint64(end))[: len(place)]
        if (size > page).any() or (place % np.uint64(page) + size > page).any():
            return f"an image does not lie within one page of {page} bytes"
        if (place + size > following).any():
            return "images overlap, or reach into the allocation table"
        if (entry["sample_id"] >= head.samples).any():
            return f"images of more than its {head.samples} samples"
    return None


def _damaged(head: Head, records: np.ndarray, entries, begin: int) -> np.ndarray:
    """Which of the samples from `begin` on are damaged, by their metadata. entries: the allocation table and its
    places."""
    columns = {name: records[own] for name, own in zip(head.handlers, records.dtype.names, strict=True)}
    damaged = np.zeros(len(records), bool)
    for name, field in head.handlers.items():
        if isinstance(field, RGBImageField):
            damaged |= _contradicts_table(columns[name], entries, begin)
        elif name == "label" and isinstance(field, IntField):
            damaged |= columns[name] < 0
    larger = columns["image"]
    for name in levels(head.handlers):
        damaged |= _not_a_level(columns[name], larger, columns["image"])
        larger = columns[name]
    return damaged


def _contradicts_table(image: np.ndarray, entries, begin: int) -> np.ndarray:
    """Which entries do not point at a stored image of their own sample, or at one of an impossible size."""
    table, places = entries
    entry = table[np.minimum(np.searchsorted(places, image["data_ptr"]), len(table) - 1)]
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    return (
        (entry["ptr"] != image["data_ptr"])
        | (entry["sample_id"] != np.arange(begin, begin + len(image), dtype=np.uint64))
        | (entry["size"] == 0)
        | (height == 0)
        | (width == 0)
        | (height * width > MOST_PIXELS)
        | (image["mode"] > 1)
        | ((image["mode"] == 1) & (entry["size"] != 3 * height * width))
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
