"""A file of records of named arrays that survives a kill: a record is there whole or not at all.

A record is its length and its XXH64 (little-endian uint64 each), then NumPy's .npz.
"""

import io
import os
import struct

import numpy as np
from xxhash import xxh64_intdigest

_HEAD = struct.Struct("<QQ")


def add(file, arrays: dict[str, np.ndarray]):
    """Adds a record at the end of the open file, and syncs it to the disk."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    record = stream.getvalue()
    file.seek(0, os.SEEK_END)
    file.write(_HEAD.pack(len(record), xxh64_intdigest(record)) + record)
    file.flush()
    os.fsync(file.fileno())


def records(file, is_sound=lambda record: True):
    """Yields the arrays of each record of the open file, oldest first. The file is cut off before the first record that
    is damaged, incomplete or not sound."""
    length = file.seek(0, os.SEEK_END)
    place = 0
    while place + _HEAD.size <= length:
        file.seek(place)
        size, checksum = _HEAD.unpack(file.read(_HEAD.size))
        record = file.read(size) if place + _HEAD.size + size <= length else b""
        if len(record) != size or xxh64_intdigest(record) != checksum:
            break
        arrays = dict(np.load(io.BytesIO(record), allow_pickle=False))
        if not is_sound(arrays):
            break
        yield arrays
        place += _HEAD.size + size
    file.truncate(place)
