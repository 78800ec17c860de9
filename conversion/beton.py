"""FFCV's file layout, version 2, with images (RGBImageField) and a `label` (IntField): written and read.

    header | field descriptors | metadata of each sample | zeros | image data in pages | allocation table

The image fields are `image` and, in a pyramid, the same image at smaller sizes: `image_256`, `image_160`. All numbers
are little-endian. Image data begin at a multiple of the page size and no image crosses one, as FFCV's process cache
needs. Each level fills pages of its own, so that an epoch that reads one level reads nothing else. The bytes depend on
the samples and the page size alone. Layout and codes are written out here because importing ffcv takes seconds; a test
compares them with ffcv's own.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from xxhash import xxh64

from conversion.direct import BLOCK, aligned_buffer, next_multiple, open_direct, read_at, write_at
from conversion.encode import MODES, Encoded
from ffcv_ops.errors import UserError

VERSION = 2
MIN_PAGE_SIZE = 2**21

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True)
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
CHECKSUM = np.dtype("<u8")
IMAGE_FIELD, INT_FIELD = 2, 1  # FFCV's type numbers
SINGLE = ("image",)  # the image fields of a file without a pyramid


def level_fields(levels: Sequence[int]) -> tuple[str, ...]:
    """Names of the image fields, largest first: (500, 256, 160) -> ("image", "image_256", "image_160")."""
    return ("image", *(f"image_{side}" for side in levels[1:]))


def sample_type(images: Sequence[str] = SINGLE) -> np.dtype:
    """One sample's metadata, in a file with these image fields."""
    return np.dtype([*((name, IMAGE) for name in images), ("label", "<i8")], align=True)


def metadata_start(images: Sequence[str] = SINGLE) -> int:
    """Where the samples' metadata begin."""
    return HEADER.itemsize + (len(images) + 1) * FIELD.itemsize


class BetonWriter:
    """A .beton while its images are appended.

    Each level fills a page in memory (`pages`); of it, the file has what lies before `written`. A full page is written
    by a thread while a spare one fills, so the encoder's results need not wait for the disk.

    table: records of `sample_type`, the first `samples` of them in use. allocations, checksums (XXH64): of the stored
    images, in the order of the samples, the first `stored` of them in use. positions: where the next image of each
    level goes, in bytes of the file.
    """

    def __init__(self, path: Path, capacity: int, page_size: int, images: Sequence[str] = SINGLE):
        """Opens `path`, which may hold the images of a stopped conversion. capacity: samples at most; page_size: bytes,
        a power of 2; images: the image fields, largest first."""
        self.path, self.page_size = path, page_size
        self.table = np.zeros(capacity, sample_type(images))
        self.allocations = np.zeros(capacity * len(images), ALLOCATION)
        self.checksums = np.zeros(len(self.allocations), CHECKSUM)
        self.samples = self.stored = 0
        first_page = next_multiple(metadata_start(images) + self.table.nbytes, page_size)
        # The first image of every level asks for a page, since no page is open at a multiple of the page size.
        self.positions, self.next_page = [first_page] * len(images), first_page
        self.written = self.positions.copy()
        self.spare_page, *self.pages = (aligned_buffer(page_size) for _ in (None, *images))
        self.file = open_direct(path)
        self.thread = ThreadPoolExecutor(1)
        self.pending_write = self.thread.submit(int)

    def close(self):
        self.thread.shutdown()
        self.file.close()

    def append(self, sample: Sequence[Encoded], label: int):
        """Adds one sample's images, one for each level."""
        record, previous = self.table[self.samples], None
        for level, image in enumerate(sample):
            if image == previous:  # a level that reduces nothing is stored once
                record[level] = record[level - 1]
                continue
            previous, size, position = image, len(image.data), self.positions[level]
            if not 0 < position % self.page_size <= self.page_size - size:
                self._next_page(level)
                position, self.next_page = self.next_page, self.next_page + self.page_size
                self.written[level] = position
            start = position % self.page_size
            self.pages[level][start : start + size] = image.data
            record[level] = MODES[image.mode], image.width, image.height, position
            self.allocations[self.stored] = self.samples, position, size
            self.checksums[self.stored] = image.checksum
            self.positions[level] = position + size
            self.stored += 1
        record["label"] = label
        self.samples += 1

    def flush(self):
        """Writes what was appended to the file. It is not synced."""
        self.pending_write.result()
        for level in range(len(self.pages)):
            if self.written[level] < self.positions[level]:
                write_at(self.file, *self._unwritten(level))

    def _next_page(self, level):
        """Has the full page written, and takes the spare one in its place."""
        self.pending_write.result()
        if self.written[level] < self.positions[level]:
            self.pending_write = self.thread.submit(write_at, self.file, *self._unwritten(level))
            self.pages[level], self.spare_page = self.spare_page, self.pages[level]

    def _unwritten(self, level):
        """(place in the file, bytes) of what the file lacks of the open page."""
        # Direct writes take whole blocks: the first may hold images that are written already, zeros fill the last.
        start, end = self.written[level] // BLOCK * BLOCK, self.positions[level]
        page, page_start = self.pages[level], (end - 1) // self.page_size * self.page_size
        page[end - page_start : next_multiple(end) - page_start] = bytes(next_multiple(end) - end)
        self.written[level] = end
        return start, page[start - page_start : next_multiple(end) - page_start]

    def state_since(self, samples: int, stored: int) -> dict[str, np.ndarray]:
        """What the tables gained since they had so many samples and stored images: arrays for `restore`."""
        return {
            "table": self.table[samples : self.samples],
            "allocations": self.allocations[stored : self.stored],
            "checksums": self.checksums[stored : self.stored],
            "positions": np.array([*self.positions, self.next_page]),
        }

    def restore(self, state: dict[str, np.ndarray]):
        """Adds to the tables what `state_since` gave. Call `resume` behind the last one."""
        samples, stored = self.samples, self.stored
        self.samples, self.stored = samples + len(state["table"]), stored + len(state["checksums"])
        self.table[samples : self.samples] = state["table"]
        self.allocations[stored : self.stored] = state["allocations"]
        self.checksums[stored : self.stored] = state["checksums"]
        *self.positions, self.next_page = state["positions"].tolist()

    def resume(self):
        """Cuts off what the file has beyond the restored tables, and reads the open pages back into memory."""
        length = next_multiple(max(self.positions))
        self.file.truncate(length)
        for page, end in zip(self.pages, self.positions, strict=True):
            used = end % self.page_size
            if used:
                page_start, block = end - used, used // BLOCK * BLOCK
                if read_at(self.file, page_start, page[: next_multiple(used)]) < used:
                    raise UserError(f"{self.path} cannot be read where it was read before; check the disk")
                page[used:] = bytes(self.page_size - used)  # so that the same command gives the same bytes
                write_at(self.file, page_start + block, page[block : min(self.page_size, length - page_start)])
        self.written = self.positions.copy()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Writes the allocation table behind the images and the other tables before them, and syncs the file. Returns
        the metadata, records of `sample_type`, and the XXH64 of each stored image by its place."""
        self.flush()
        table, images = self.table[: self.samples], self.table.dtype.names[:-1]
        by_place = np.argsort(self.allocations["ptr"][: self.stored])
        data_end = max(self.positions)
        header = np.array((VERSION, len(images) + 1, self.page_size, len(table), data_end), HEADER)
        with open(self.path, "r+b") as tables:  # not the direct file: tables end at any byte
            tables.truncate(data_end)
            tables.write(header.tobytes() + field_descriptors(images).tobytes())
            tables.write(table.data)
            tables.seek(data_end)
            tables.write(self.allocations[by_place].data)
            tables.flush()
            os.fsync(tables.fileno())
            os.posix_fadvise(tables.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # `check_index` shall read the disk
        return table, self.checksums[by_place]


def write(path: Path, samples, *, capacity: int, page_size: int, images: Sequence[str] = SINGLE):
    """Writes `samples`, an iterable of at most `capacity` pairs: an Encoded for each field in `images`, and a label.
    Returns what `BetonWriter.finish` does."""
    with contextlib.closing(BetonWriter(path, capacity, page_size, images)) as writer:
        writer.file.truncate(0)
        for sample, label in samples:
            writer.append(sample, label)
        return writer.finish()


def index_checksum(path: Path) -> str:
    """XXH64, in hex digits, of all but the images: of what lies before them, and then of the allocation table."""
    header, images = _header_and_images(path)
    before = metadata_start(images) + int(header["num_samples"]) * sample_type(images).itemsize
    digest = xxh64()
    with open(path, "rb") as file:
        digest.update(file.read(before))
        file.seek(int(header["alloc_table_ptr"]))
        digest.update(file.read())
    return digest.hexdigest()


def owners(path: Path) -> np.ndarray:
    """The sample number of each stored image, in the order of their places: int64 [stored images]."""
    header, _ = _header_and_images(path)
    return np.fromfile(path, ALLOCATION, offset=int(header["alloc_table_ptr"]))["sample_id"]


def read(path: Path, field: str = "image"):
    """Yields (RGB array, label) of each sample of a file that `write` wrote; of a pyramid, the images of `field`."""
    table, sizes = _table_and_sizes(path)
    with open(path, "rb") as file:
        for image, label, size in zip(table[field], table["label"], sizes[field], strict=True):
            file.seek(image["data_ptr"])
            data = file.read(size)
            if image["mode"] == MODES["jpg"]:
                yield np.asarray(Image.open(io.BytesIO(data))), int(label)
            else:
                yield np.frombuffer(data, np.uint8).reshape(image["height"], image["width"], 3), int(label)


def stored(path: Path) -> dict[str, dict[str, int]]:
    """What each image field takes: {"image": {"images": 5, "bytes": 250000}, ...}. An image that levels share counts
    for the largest."""
    table, sizes = _table_and_sizes(path)
    by_field, previous = {}, None
    for name in table.dtype.names[:-1]:
        own = slice(None) if previous is None else table[name] != previous
        by_field[name] = {"images": len(table[own]), "bytes": int(sizes[name][own].sum())}
        previous = table[name]
    return by_field


def _table_and_sizes(path):
    """The samples' metadata, and the length of each image's data by field."""
    header, images = _header_and_images(path)
    table = np.fromfile(path, sample_type(images), int(header["num_samples"]), offset=metadata_start(images))
    allocations = np.fromfile(path, ALLOCATION, offset=int(header["alloc_table_ptr"]))
    place = {name: np.searchsorted(allocations["ptr"], table[name]["data_ptr"]) for name in images}
    return table, {name: allocations["size"][place[name]] for name in images}


def _header_and_images(path):
    """The header, and the names of the image fields."""
    header = np.fromfile(path, HEADER, 1)[0]
    names = np.fromfile(path, FIELD, int(header["num_fields"]), offset=HEADER.itemsize)["name"]
    return header, tuple(bytes(name).rstrip(b"\0").decode() for name in names)[:-1]


def field_descriptors(images):
    fields = {**dict.fromkeys(images, IMAGE_FIELD), "label": INT_FIELD}
    descriptors = np.zeros(len(fields), FIELD)
    for descriptor, (name, type_id) in zip(descriptors, fields.items(), strict=True):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = list(name.encode("ascii"))
    return descriptors
