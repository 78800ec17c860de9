"""Ways to damage a .beton: by hand, each for a reason, and single flipped bits, by the region that they are in.

A damage is a function that changes a `File`, the bytes of a whole file with views of its parts, or returns other bytes
in their place.
"""

import random
from collections.abc import Callable

import numpy as np

from conversion import beton


class File:
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
        return {
            "header": (0, beton.HEADER.itemsize),
            "field descriptors": (beton.HEADER.itemsize, metadata),
            "sample metadata": (metadata, metadata + self.records.nbytes),
            "image data": (int(self.table["ptr"][0]), self.table_start),
            "allocation table": (self.table_start, len(self.bytes)),
        }


def _cut(length: Callable[[int], int]):
    return lambda file: bytes(file.bytes[: length(len(file.bytes))])


def _one_sample_too_many(file):
    file.header["num_samples"] += 1


def _exchanged_names(file):
    file.fields["name"] = file.fields["name"][::-1].copy()


def _pointer_of_another(file):
    file.records["image"]["data_ptr"][7] = file.records["image"]["data_ptr"][9]


def _labels_of_the_next(file):
    file.records["label"] = np.roll(file.records["label"], 1)


def _size_too_large(file):
    file.table["size"][7] += 1000


def _zeroed(start: int, stop: int | None):
    """Of image 7."""

    def damage(file):
        file.image(7)[start:stop] = 0

    return damage


def _other_image(file):
    """Image 7's place gets the bytes of a shorter one, and zeros behind it."""
    image, other = file.image(7), min((file.image(k) for k in range(file.samples) if k != 7), key=len)
    image[:] = 0
    image[: min(len(image), len(other))] = other[: len(image)]


def _other_height(file):
    """The height in a JPEG's own frame header."""
    image = file.image(7)
    image[bytes(image).index(b"\xff\xc0") + 6] ^= 16


BY_HAND: dict[str, Callable[[File], bytes | None]] = {  # what a flipped bit is not; image 7 of 64
    "empty file": lambda file: b"",
    "another kind of file": lambda file: b"GIF89a" * 1000,
    "the header alone": _cut(lambda size: beton.HEADER.itemsize),
    "header and descriptors": _cut(lambda size: beton.metadata_start()),
    **{f"cut to {part} %": _cut(lambda size, part=part: size * part // 100) for part in (10, 50, 90)},
    "last byte cut": _cut(lambda size: size - 1),
    "last table entry cut": _cut(lambda size: size - beton.ALLOCATION.itemsize),
    "one byte appended": lambda file: bytes(file.bytes) + b"\0",
    "one sample too many": _one_sample_too_many,
    "field names exchanged": _exchanged_names,
    "another image's pointer": _pointer_of_another,
    "all labels shifted": _labels_of_the_next,
    "one size too large": _size_too_large,
    "64 bytes of a JPEG": _zeroed(700, 764),
    "a whole JPEG zeroed": _zeroed(0, None),
    "a JPEG's end zeroed": _zeroed(-20, None),
    "another image's bytes": _other_image,
    "another height in the JPEG": _other_height,
}


def by_hand(file: File, name: str) -> bytes:
    """The bytes of the file after damage `name`, which also changes `file` itself."""
    other = BY_HAND[name](file)
    return file.bytes.tobytes() if other is None else other


def flips(file: File, region: str, count: int) -> list[int]:
    """Places of `count` different bits in a region, drawn evenly."""
    begin, end = file.regions()[region]
    return random.Random(region).sample(range(8 * begin, 8 * end), min(count, 8 * (end - begin)))


def flipped(file: File, bit: int) -> bytes:
    changed = file.bytes.copy()
    changed[bit // 8] ^= 1 << bit % 8
    return changed.tobytes()
