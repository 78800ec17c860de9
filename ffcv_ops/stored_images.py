"""The stored images of some samples: a table that says where their bytes lie, and how one of them is read and checked.

A sample has one image, or several levels of it that are smaller and smaller: tables are [samples, levels].
"""

from collections.abc import Callable

import numpy as np

from ffcv_ops.compiled import kernel
from ffcv_ops.jpeg.decoder import CORRUPT, OK
from ffcv_ops.stock import IMAGE_MODES
from ffcv_ops.storage import reading
from ffcv_ops.storage.checksum import xxh64
from ffcv_ops.storage.index import Index

JPG, RAW = int(IMAGE_MODES["jpg"]), int(IMAGE_MODES["raw"])

UNREAD, CHANGED = 2, 3
FAULTS = {
    CORRUPT: "could not be decoded (damaged data)",
    UNREAD: "could not be read",
    CHANGED: "is not what was written (its checksum differs)",
}

STORED_IMAGE = np.dtype(
    [
        ("place", np.uint64),  # in the file; for IN_MEMORY an address
        ("size", np.int64),  # bytes
        ("checksum", np.uint64),  # XXH64
        ("height", np.int64),
        ("width", np.int64),
        ("mode", np.int32),  # JPG or RAW
        ("file", np.int32),  # a descriptor, or reading.IN_MEMORY
        ("has_checksum", np.bool_),
    ],
    align=True,
)


def stored_images(index: Index, levels: list[np.ndarray], samples, locate: Callable) -> np.ndarray:
    """STORED_IMAGE [samples, levels]. levels: of each level the column of the index. samples: numbers or a slice.
    locate: the memory manager's function from places in the row of all files to descriptors and places in them."""
    entries = np.stack([level[samples] for level in levels], axis=1)
    image = np.searchsorted(index.places, entries["data_ptr"])
    table = np.zeros(entries.shape, STORED_IMAGE)
    table["file"], table["place"] = locate(entries["data_ptr"])
    table["size"] = index.sizes[image]
    for name in ("mode", "height", "width"):
        table[name] = entries[name]
    if index.checksums is not None:
        table["checksum"], table["has_checksum"] = index.checksums[image], True
    return table


def in_memory(image: np.ndarray) -> np.ndarray:
    """The table of one raw image, uint8 [height, width, 3] and contiguous, which must outlive it."""
    table = np.zeros((1, 1), STORED_IMAGE)
    table["file"], table["place"], table["size"] = reading.IN_MEMORY, image.ctypes.data, image.nbytes
    table["mode"], table["height"], table["width"] = RAW, *image.shape[:2]
    return table


@kernel
def fetch(image, buffer):
    """(address, OK) of the bytes of a STORED_IMAGE, or (0, what is wrong with them). buffer: uint8, long enough.

    The checksum comes before the decoder: nothing that was changed on the disk is ever interpreted.
    """
    address = reading.fetch(image.file, image.place, image.size, buffer)
    if address == 0:
        return address, UNREAD
    if image.has_checksum and xxh64(address, image.size) != image.checksum:
        return address, CHANGED
    return address, OK
