"""Which file each sample was made from (x.files.txt, beside a .beton), for messages."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from ffcv_ops.errors import reading
from ffcv_ops.files import open_regular
from ffcv_ops.storage.beton_file import beside
from ffcv_ops.storage.shards import files_of

_LONGEST = 2**16  # bytes of a line that are taken for a name; a file of holes has no line's end


def source_names(path: Path | str) -> Iterator[str]:
    """Where the samples come from, one after the other; nothing where that was not recorded."""
    for file in files_of(path):
        names = beside(file, ".files.txt")
        if os.path.lexists(names):
            with reading(names), open_regular(names) as lines:
                for line in iter(lambda: lines.readline(_LONGEST), b""):
                    yield line.decode("utf-8", "backslashreplace").rstrip("\n")


def source_of(index, sample: int) -> str:
    """The file that a sample was made from, for a message: printable. "" when it was not recorded."""
    return next(sources_from(index, sample), "")


def sources_from(index, sample: int) -> Iterator[str]:
    """`source_of` this sample and of each one after it. The lists are read once, from the shard of the first on."""
    for file in index.files:
        yield from itertools.islice(of_file(file.path, sample), max(file.samples - sample, 0))
        sample = max(sample - file.samples, 0)


def of_file(path: Path, sample: int) -> Iterator[str]:
    """`source_of` this sample of one file and of each one after it, without end."""
    for name in itertools.chain(itertools.islice(source_names(path), sample, None), itertools.repeat("")):
        yield name if name.isprintable() else ascii(name)


def named(sample: int, source: str) -> str:
    """A sample in a message: its number and, where that is known, the file that it was made from."""
    return f"sample {sample} {source}".rstrip()
