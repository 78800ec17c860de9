"""Ways to damage a .beton: by hand, each for a reason, and single flipped bits, by the region that they are in.

A damage is a function that changes a `Beton`, the bytes of a whole file with views of its parts, or returns other bytes
in their place.
"""

import random
from collections.abc import Callable

import numpy as np

from conversion import beton


class Beton:
    """A file's bytes, and its parts as arrays that write through to them: one image field and the label."""

    def __init__(self, whole: bytes):
        self.bytes = np.frombuffer(bytearray(whole), np.uint8)
        header = self._view(0, 1, beton.HEADER)
        count, table = int(header["num_samples"][0]), int(header["alloc_table_ptr"][0])
        self.table_start, self.samples = table, count
        self.header, self.fields = header, self._view(beton.HEADER.itemsize, 2, beton.FIELD)
        self.records = self._view(beton.metadata_start(), count, beton.sample_type())
        self.table = self._view(table, (len(whole) - table) // beton.ALLOCATION.itemsize, beton.ALLOCATION)

    def _view(self, start, count, kind):
        return self.bytes[start : start + count * kind.itemsize].view(kind)

    def image(self, number: int) -> np.ndarray:
        """The stored bytes of image `number`, in file order."""
        start, size = (int(self.table[name][number]) for name in ("ptr", "size"))
        return self.bytes[start : start + size]

    def regions(self) -> dict[str, tuple[int, int]]:
        """Where the parts begin and end."""
        metadata = beton.metadata_start()
        data = int(self.table["ptr"][0])
        return {
            "header": (0, beton.HEADER.itemsize),
            "field descriptors": (beton.HEADER.itemsize, metadata),
            "sample metadata": (metadata, metadata + self.records.nbytes),
            "image data": (data, self.table_start),
            "allocation table": (self.table_start, len(self.bytes)),
        }


def _put(part: str, name: str, value, at: int = 0) -> Callable[[Beton], None]:
    """Sets one number. A function gets the number that is there."""

    def damage(file):
        column = getattr(file, part)[name]
        column[at] = value(int(column[at])) if callable(value) else value

    return damage


def _put_image(name: str, value, at: int = 7):
    def damage(file):
        column = file.records["image"][name]
        column[at] = value(int(column[at])) if callable(value) else value

    return damage


def _exchange(part: str, name: str, one: int = 7, other: int = 9):
    def damage(file):
        column = getattr(file, part)[name]
        column[[one, other]] = column[[other, one]]

    return damage


def _write(start: int, count: int | None, value: int, number: int = 7):
    """Overwrites bytes of a stored image."""

    def damage(file):
        image = file.image(number)
        image[start : len(image) if count is None else start + count] = value

    return damage


def _cut(length: Callable[[int], int]):
    return lambda file: bytes(file.bytes[: length(len(file.bytes))])


def _append(count: int):
    return lambda file: bytes(file.bytes) + bytes(count)


def _instead(content: bytes):
    return lambda file: content


def _other_image(file):
    """Image 7's place gets the bytes of a shorter one, and zeros behind it."""
    image, other = file.image(7), min((file.image(k) for k in range(file.samples) if k != 7), key=len)
    image[:] = 0
    image[: min(len(image), len(other))] = other[: len(image)]


def _other_height(file):
    """The height in a JPEG's own frame header."""
    image = file.image(7)
    marker = bytes(image).index(b"\xff\xc0")
    image[marker + 6] ^= 16


def _last_entry_zeroed(file):
    file.table[-1] = 0


def _labels_of_the_next(file):
    file.records["label"] = np.roll(file.records["label"], 1)


BY_HAND: dict[str, Callable[[Beton], bytes | None]] = {
    "empty file": _instead(b""),
    "10 bytes": _cut(lambda n: 10),
    "the header alone": _cut(lambda n: 24),
    "header and descriptors": _cut(lambda n: beton.metadata_start()),
    "another kind of file": _instead(b"GIF89a" * 1000),
    **{f"cut to {part} %": _cut(lambda n, part=part: n * part // 100) for part in (10, 25, 50, 75, 90, 99)},
    "last byte cut": _cut(lambda n: n - 1),
    "last table entry cut": _cut(lambda n: n - 24),
    "one byte appended": _append(1),
    "version 1": _put("header", "version", 1),
    "version 3": _put("header", "version", 3),
    "no fields": _put("header", "num_fields", 0),
    "one field": _put("header", "num_fields", 1),
    "page size 3": _put("header", "page_size", 3),
    "page size 0": _put("header", "page_size", 0),
    "page size doubled": _put("header", "page_size", lambda old: 2 * old),
    "no samples": _put("header", "num_samples", 0),
    "10 samples of 64": _put("header", "num_samples", 10),
    "one sample too many": _put("header", "num_samples", lambda old: old + 1),
    "a million samples": _put("header", "num_samples", 10**6),
    "2^40 samples": _put("header", "num_samples", 2**40),
    "table pointer 0": _put("header", "alloc_table_ptr", 0),
    "table pointer 8 too small": _put("header", "alloc_table_ptr", lambda old: old - 8),
    "table pointer 24 too large": _put("header", "alloc_table_ptr", lambda old: old + 24),
    "table pointer past the end": _put("header", "alloc_table_ptr", 2**50),
    "image field of another type": _put("fields", "type_id", 1),
    "label field of another type": _put("fields", "type_id", 0, 1),
    "unknown field type": _put("fields", "type_id", 200),
    "field names exchanged": _exchange("fields", "name", 0, 1),
    "field name that is no text": _put("fields", "name", 255),
    "JPEG marked as raw": _put_image("mode", 1),
    "unknown mode": _put_image("mode", 9),
    "width 0": _put_image("width", 0),
    "height 0": _put_image("height", 0),
    "width 65,535": _put_image("width", 65535),
    "width one less": _put_image("width", lambda old: old - 1),
    "height one more": _put_image("height", lambda old: old + 1),
    "image pointer 0": _put_image("data_ptr", 0),
    "image pointer one byte on": _put_image("data_ptr", lambda old: old + 1),
    "image pointer past the end": _put_image("data_ptr", 2**30),
    "image pointer far away": _put_image("data_ptr", 2**60),
    "another image's pointer": lambda file: _put_image("data_ptr", int(file.records["image"]["data_ptr"][9]))(file),
    "label -1": _put("records", "label", -1, 7),
    "label of another class": _put("records", "label", lambda old: (old + 1) % 5, 7),
    "label a million": _put("records", "label", 10**6, 7),
    "all labels shifted": _labels_of_the_next,
    "a JPEG's first two bytes zeroed": _write(0, 2, 0),
    "one byte of a JPEG": _write(700, 1, 0x55),
    "64 bytes of a JPEG": _write(700, 64, 0x55),
    "a whole JPEG zeroed": _write(0, None, 0),
    "a JPEG's end zeroed": _write(-20, None, 0),
    "another image's bytes": _other_image,
    "another height in the JPEG": _other_height,
    "one size too large": _put("table", "size", lambda old: old + 1000, 7),
    "one size 0": _put("table", "size", 0, 7),
    "one size 2^40": _put("table", "size", 2**40, 7),
    "last table entry zeroed": _last_entry_zeroed,
}


def by_hand(file: Beton, name: str) -> bytes:
    """The bytes of the file after damage `name`, which also changes `file` itself."""
    other = BY_HAND[name](file)
    return file.bytes.tobytes() if other is None else other


def flips(file: Beton, region: str, count: int) -> list[int]:
    """Places of `count` different bits in a region, drawn evenly."""
    begin, end = file.regions()[region]
    return random.Random(region).sample(range(8 * begin, 8 * end), min(count, 8 * (end - begin)))


def flipped(file: Beton, bit: int) -> bytes:
    changed = file.bytes.copy()
    changed[bit // 8] ^= 1 << bit % 8
    return changed.tobytes()
