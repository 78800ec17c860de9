"""What a source gives to the writer: its splits' items, names and labels, in arrays instead of an object per sample.

A sample of a tar file takes 32 bytes here, and its name: place, size, label, and where the name ends.
"""

import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conversion.encode import ReadError
from conversion.sources.selection import LeftOut
from ffcv_ops.errors import UserError, one_line, reading
from ffcv_ops.files import Irregular, open_regular

MAX_FILE = 2**30  # bytes of an image file: a file of holes can claim any size

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}


class Split(NamedTuple):
    """The samples of one split in their order: what `Source.read` takes (picklable, made when asked for), the names
    that lists and messages show, one line each, and int64 class numbers. left_out: how many files of the source are no
    samples, by reason."""

    items: Sequence
    names: Sequence[str]
    labels: np.ndarray
    left_out: Mapping[str, int] = types.MappingProxyType({})


def read_file(item: str, root: str = "") -> bytes:
    """The bytes of the image file at the path `item` below `root`."""
    try:
        with open_regular(os.path.join(root, item), MAX_FILE) as file:
            return file.read()
    except Irregular as fault:
        raise UserError(fault.reason) from None  # whoever reports it adds the path


def stamps(paths: Iterable[Path | str]) -> dict[str, tuple[int, int]]:
    """Of each file what changes when it is replaced or written to: length and time of change (ns). A `UserError` where
    one is none."""
    found = {}
    for path in map(str, paths):
        with reading(path), open_regular(path) as file:
            found[path] = _stamp(file.fileno())
    return found


def _stamp(file):
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def require_unchanged(path: str, known: Mapping[str, tuple[int, int]]):
    """A `ReadError` where a file of which there is a stamp is no longer what its labels were read from."""
    if path in known and _stamp(path) != known[path]:
        raise ReadError(f"{path} was written to or replaced since its labels were read; run the same command again")


class Source(NamedTuple):
    """A data set before its conversion: where it is from, its class names by number, its splits by name.

    read: makes of an item the bytes of an image file, or RGB pixels, uint8 (height, width, 3). Workers call it, so it
    and the items must pickle; it opens what it needs where it is called. It raises a UserError where the item is no
    image, a ReadError or OSError where it cannot be read. made: the keys that made it, for x.json; what is not said in
    it has its default.
    """

    origin: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    read: Callable = read_file
    made: Mapping = types.MappingProxyType({})


class Lazy(Sequence):
    """Something by number, made when it is asked for by `_make`; a slice gives a list."""

    def __getitem__(self, number):
        numbers = range(len(self))[number]
        return [self._make(k) for k in numbers] if isinstance(number, slice) else self._make(numbers)


class Made(Lazy):
    """So many things, each made by a function of its number."""

    def __init__(self, count: int, make: Callable[[int], object]):
        self.count, self._make = count, make

    def __len__(self):
        return self.count


class Strings(Lazy):
    """Text by number: 8 bytes a string and its UTF-8. File names that are no UTF-8 keep their bytes."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, strings: Iterable[str]):
        text, ends = bytearray(), []
        for string in strings:
            text += string.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.array(ends, np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Strings"]):
        if not parts:
            return cls.of(())
        starts = np.cumsum([0, *(len(part.text) for part in parts[:-1])])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=True)]
        return cls(np.concatenate([part.text for part in parts]), np.concatenate(ends))

    def __len__(self):
        return len(self.ends)

    def _make(self, number):
        start = self.ends[number - 1] if number else 0
        return self.text[start : self.ends[number]].tobytes().decode("utf-8", "surrogateescape")


class Spans(Lazy):
    """Items that are stretches of files, (path, offset, size in bytes), file after file."""

    def __init__(self, paths: Sequence[str], counts: Sequence[int], offsets: np.ndarray, sizes: np.ndarray):
        """counts: the number of items in each of `paths`."""
        self.paths, self.ends = paths, np.cumsum(counts)
        self.offsets, self.sizes = offsets, sizes

    def __len__(self):
        return len(self.offsets)

    def _make(self, number):
        path = self.paths[np.searchsorted(self.ends, number, side="right")]
        return path, int(self.offsets[number]), int(self.sizes[number])


def prefixed(prefixes: Sequence[str], counts: Sequence[int], strings: Strings) -> Made:
    """Names that begin with where they are from: of `counts` of the strings with each of the prefixes."""
    ends = np.cumsum(counts)
    return Made(len(strings), lambda number: prefixes[np.searchsorted(ends, number, side="right")] + strings[number])


def joined(parts: list[tuple]) -> list[Strings | LeftOut | np.ndarray]:
    """Each column of the parts, joined. `parts` is emptied on the way, so that at most one column is held twice."""
    columns = list(zip(*parts, strict=True))
    parts.clear()
    return [_joined(columns.pop(0)) for _ in range(len(columns))]


def _joined(column):
    kind = type(column[0])
    return kind.joined(column) if kind in (Strings, LeftOut) else np.concatenate(column)


def in_one_line(name: str) -> str:
    """A name out of an archive, for a list: control characters and line breaks are written as \\x0a."""
    return name.translate(_ESCAPED)


def first_few(names: Sequence[str]) -> str:
    """The first three of the names, and how many more there are, for a message."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(map(one_line, names[:3])) + more
