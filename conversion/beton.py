"""FFCV's file layout, version 2: images (RGBImageField) and a `label` (IntField), written, checked, read.

    header | field descriptors | metadata of each sample | zeros | image data in pages | allocation table

The image fields are `image` and, in a pyramid, the same image at smaller sizes: `image_256`, `image_160`. All numbers
are little-endian. Image data begin at a multiple of the page size, and none crosses such a multiple, as FFCV's process
cache asks. Each level fills pages of its own, so that an epoch that reads one level reads nothing else. The bytes
depend on the samples and the page size alone. Layout and codes are written out here because importing ffcv takes
seconds; a test holds them against ffcv's own.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from xxhash import xxh64, xxh64_intdigest

from conversion.direct import BLOCK, next_multiple, open_direct, read_at, room, write_at
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
READ = 2**21  # bytes to read back at a time
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


@dataclasses.dataclass
class Growing:
    """A file that is being written: its tables so far, where the next image of each level goes, and each level's open
    page, of which the file has what lies before `written`. A thread writes full pages, one at a time, while `spare`
    stands in for it; `close` waits for it.

    table: records of `sample_type`, `samples` of them in use. allocations and checksums (XXH64) of the stored images,
    in the order of the samples, `stored` of them in use.
    """

    page_size: int
    table: np.ndarray
    allocations: np.ndarray
    checksums: np.ndarray
    places: list[int]  # of each level: where its open page goes on
    next_page: int
    pages: list[memoryview]
    written: list[int]
    spare: memoryview
    thread: ThreadPoolExecutor
    write: Future
    samples: int = 0
    stored: int = 0

    def close(self):
        self.thread.shutdown()


def begin(capacity: int, page_size: int, images: Sequence[str] = SINGLE) -> Growing:
    """A file with room for `capacity` samples."""
    table = np.zeros(capacity, sample_type(images))
    allocations = np.zeros(capacity * len(images), ALLOCATION)
    first_page = next_multiple(metadata_start(images) + table.nbytes, page_size)
    checksums, places = np.zeros(len(allocations), CHECKSUM), [first_page] * len(images)
    spare, *pages = (room(page_size) for _ in (None, *images))
    thread = ThreadPoolExecutor(1)
    done = thread.submit(int)
    written = places.copy()
    return Growing(page_size, table, allocations, checksums, places, first_page, pages, written, spare, thread, done)


def append(file, growing: Growing, sample: Sequence[Encoded], label: int):
    """Adds one sample's images to the file of `open_direct`. One that equals the image of the level before is stored
    once."""
    record, before = growing.table[growing.samples], None
    for level, image in enumerate(sample):
        if image == before:
            record[level] = record[level - 1]
            continue
        before, size, place = image, len(image.data), growing.places[level]
        if not 0 < place % growing.page_size <= growing.page_size - size:
            _turn(file, growing, level)
            place, growing.next_page = growing.next_page, growing.next_page + growing.page_size
            growing.written[level] = place
        at = place % growing.page_size
        growing.pages[level][at : at + size] = image.data
        record[level] = MODES[image.mode], image.width, image.height, place
        growing.allocations[growing.stored] = growing.samples, place, size
        growing.checksums[growing.stored] = image.checksum
        growing.places[level] = place + size
        growing.stored += 1
    record["label"] = label
    growing.samples += 1


def flush(file, growing: Growing):
    """What was added is in the file."""
    growing.write.result()
    for level in range(len(growing.pages)):
        if growing.written[level] < growing.places[level]:
            write_at(file, *_new(growing, level))


def _turn(file, growing, level):
    """The open page is full, and is written while another one fills."""
    growing.write.result()
    if growing.written[level] < growing.places[level]:
        growing.write = growing.thread.submit(write_at, file, *_new(growing, level))
        growing.pages[level], growing.spare = growing.spare, growing.pages[level]


def _new(growing, level):
    """Where that goes of the open page which is not in the file, and what it is. In whole blocks: the first one may
    have been written before, in part, and zeros fill the last one."""
    start, end = growing.written[level] // BLOCK * BLOCK, growing.places[level]
    page, first = growing.pages[level], (end - 1) // growing.page_size * growing.page_size
    page[end - first : next_multiple(end) - first] = bytes(next_multiple(end) - end)
    growing.written[level] = end
    return start, page[start - first : next_multiple(end) - first]


def go_on(file, growing: Growing):
    """Makes of the file, in which there may be more, what it was when its tables were those of `growing`, whose open
    pages it reads."""
    length = next_multiple(max(growing.places))
    file.truncate(length)
    for page, end in zip(growing.pages, growing.places, strict=True):
        used = end % growing.page_size
        if used:
            first, block = end - used, used // BLOCK * BLOCK
            if read_at(file, first, page[: next_multiple(used)]) < used:
                raise UserError(f"{file.name} cannot be read where it was read before; is the disk sound?")
            page[used:] = bytes(growing.page_size - used)
            write_at(file, first + block, page[block : min(growing.page_size, length - first)])
    growing.written = growing.places.copy()


def finish(path: Path, file, growing: Growing):
    """Writes the allocation table behind the images, then what lies before them, and syncs the file to the disk.
    Returns what `write` does."""
    flush(file, growing)
    table, images = growing.table[: growing.samples], growing.table.dtype.names[:-1]
    by_place = np.argsort(growing.allocations["ptr"][: growing.stored])
    data_end = max(growing.places)
    header = np.array((VERSION, len(images) + 1, growing.page_size, len(table), data_end), HEADER)
    with open(path, "r+b") as tables:
        tables.truncate(data_end)
        tables.write(header.tobytes() + _field_descriptors(images).tobytes())
        tables.write(table.data)
        tables.seek(data_end)
        tables.write(growing.allocations[by_place].data)
        tables.flush()
        os.fsync(tables.fileno())
        os.posix_fadvise(tables.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # `check_index` shall read the disk
    return table, growing.checksums[by_place]


def write(path: Path, samples, *, capacity: int, page_size: int, images: Sequence[str] = SINGLE):
    """Writes the `samples`, an iterable of at most `capacity` (Encoded of each field in `images`, label).

    Returns the metadata, records of `sample_type`, and the XXH64 of each stored image by its place."""
    growing = begin(capacity, page_size, images)
    with open_direct(path) as file, contextlib.closing(growing):
        file.truncate(0)
        for sample, label in samples:
            append(file, growing, sample, label)
        return finish(path, file, growing)


def check_images(path: Path, file, table: np.ndarray, allocations: np.ndarray, checksums: np.ndarray):
    """Reads images of the open file `path` back from the disk: a `UserError` where one does not have its checksum, or
    is a JPEG of another size than its record says. They are those of the samples in `table`;
    allocations and checksums are in the same order, and there is at least one."""
    by_place = np.argsort(allocations["ptr"])
    allocations, checksums = allocations[by_place], checksums[by_place].tolist()
    records, samples = _records_of(table, allocations).tolist(), allocations["sample_id"].tolist()
    starts, ends = allocations["ptr"].astype(np.int64), (allocations["ptr"] + allocations["size"]).astype(np.int64)
    os.posix_fadvise(file.fileno(), starts[0], ends[-1] - starts[0], os.POSIX_FADV_DONTNEED)
    buffer = room(max(READ, int((ends - starts).max()) + BLOCK))
    begin = 0
    while begin < len(starts):
        low = int(starts[begin]) // BLOCK * BLOCK
        stop = max(begin + 1, int(np.searchsorted(ends, low + READ, "right")))
        try:
            there = read_at(file, low, buffer[: next_multiple(int(ends[stop - 1]) - low)])
        except OSError as error:
            _fail(path, f"sample {samples[begin]}, or one behind it: {error.strerror}")
        for number in range(begin, stop):
            data = buffer[starts[number] - low : min(ends[number] - low, there)]
            mode, width, height, _ = records[number]
            if xxh64_intdigest(data) != checksums[number]:
                _fail(path, f"sample {samples[number]}: the image's bytes")
            if mode == MODES["jpg"] and jpeg_size(data) != (height, width):
                _fail(path, f"sample {samples[number]}: the size in the JPEG's header")
        begin = stop


def _records_of(table, allocations):
    """The IMAGE record of each allocation."""
    records = np.concatenate([table[name] for name in table.dtype.names[:-1]])
    records = records[np.argsort(records["data_ptr"])]
    return records[np.searchsorted(records["data_ptr"], allocations["ptr"])]


def check_index(path: Path, table: np.ndarray, checksums: np.ndarray, *, classes: int):
    """Reads the rest of the file back: holds it against what `write` returned, and tests that every record makes sense.
    A fault is a `UserError`."""
    images = table.dtype.names[:-1]
    file_size = path.stat().st_size
    header = np.fromfile(path, HEADER, 1)[0]
    count, page_size, data_end = (int(header[name]) for name in ("num_samples", "page_size", "alloc_table_ptr"))
    if (header["version"], header["num_fields"], count) != (VERSION, len(images) + 1, len(table)):
        _fail(path, "the header")
    table_bytes = len(checksums) * ALLOCATION.itemsize
    if page_size < MIN_PAGE_SIZE or page_size & (page_size - 1) or file_size != data_end + table_bytes:
        _fail(path, "the page size or the file's length")
    descriptors = _field_descriptors(images)
    if not np.array_equal(np.fromfile(path, FIELD, len(descriptors), offset=HEADER.itemsize), descriptors):
        _fail(path, "the field descriptors")
    if not np.array_equal(np.fromfile(path, table.dtype, count, offset=metadata_start(images)), table):
        _fail(path, "the samples' metadata")
    allocations = np.fromfile(path, ALLOCATION, len(checksums), offset=data_end)
    _check_places(path, table, allocations, page_size=page_size, data_end=data_end)
    _check_records(path, table, allocations, classes=classes)


def _check_places(path, table, allocations, *, page_size, data_end):
    """The stored images lie one after the other, none over a page's end."""
    start, size = allocations["ptr"].astype(np.int64), allocations["size"].astype(np.int64)
    first = metadata_start(table.dtype.names[:-1]) + table.nbytes
    faults = {
        "the allocation table": allocations["sample_id"] >= len(table),
        "the place of an image": (start < np.append(first, start[:-1] + size[:-1])) | (start + size > data_end),
        "an image over a page's end": start // page_size != (start + size - 1) // page_size,
    }
    for what, wrong in faults.items():
        if wrong.any():
            _fail(path, f"sample {allocations['sample_id'][wrong.argmax()]}: {what}")


def _check_records(path, table, allocations, *, classes):
    """Every record makes sense and every allocation has one."""
    owners = np.zeros(len(allocations), np.int64)
    faults, before = {"the label": (table["label"] < 0) | (table["label"] >= classes)}, None
    for name in table.dtype.names[:-1]:
        image = table[name]
        place = np.minimum(np.searchsorted(allocations["ptr"], image["data_ptr"]), len(allocations) - 1)
        found, area = allocations[place], 3 * image["height"].astype(np.int64) * image["width"]
        faults |= {
            f"the side of {name}": area == 0,
            f"the mode of {name}": ~np.isin(image["mode"], list(MODES.values())),
            f"the length of raw pixels of {name}": (image["mode"] == MODES["raw"]) & (found["size"] != area),
            f"the place of {name}": (found["ptr"] != image["data_ptr"]) | (found["sample_id"] != np.arange(len(table))),
        }
        owners += np.bincount(place[image != before] if before is not None else place, minlength=len(owners))
        before = image
    for what, wrong in faults.items():
        if wrong.any():
            _fail(path, f"sample {wrong.argmax()}: {what}")
    if (owners != 1).any():
        _fail(path, f"sample {allocations['sample_id'][(owners != 1).argmax()]}: the allocation table")


def index_checksum(path: Path) -> str:
    """XXH64, in hex digits, of all but the images: of what lies before them, and then of the allocation table."""
    header = np.fromfile(path, HEADER, 1)[0]
    images = _image_fields(path, header)
    before = metadata_start(images) + int(header["num_samples"]) * sample_type(images).itemsize
    digest = xxh64()
    with open(path, "rb") as file:
        digest.update(file.read(before))
        file.seek(int(header["alloc_table_ptr"]))
        digest.update(file.read())
    return digest.hexdigest()


def owners(path: Path) -> np.ndarray:
    """The sample of each stored image, by its place."""
    header = np.fromfile(path, HEADER, 1)[0]
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
    """What each image field takes: {"image": {"images": 5, "bytes": 250000}, ...}; a shared image counts where it is
    largest."""
    table, sizes = _table_and_sizes(path)
    taken, before = {}, None
    for name in table.dtype.names[:-1]:
        own = slice(None) if before is None else table[name] != before
        taken[name] = {"images": len(table[own]), "bytes": int(sizes[name][own].sum())}
        before = table[name]
    return taken


def _table_and_sizes(path):
    """The samples' metadata, and the length of each image's data by field."""
    header = np.fromfile(path, HEADER, 1)[0]
    images = _image_fields(path, header)
    table = np.fromfile(path, sample_type(images), int(header["num_samples"]), offset=metadata_start(images))
    allocations = np.fromfile(path, ALLOCATION, offset=int(header["alloc_table_ptr"]))
    place = {name: np.searchsorted(allocations["ptr"], table[name]["data_ptr"]) for name in images}
    return table, {name: allocations["size"][place[name]] for name in images}


def _image_fields(path, header):
    names = np.fromfile(path, FIELD, int(header["num_fields"]), offset=HEADER.itemsize)["name"]
    return tuple(bytes(name).rstrip(b"\0").decode() for name in names)[:-1]


def jpeg_size(data) -> tuple[int, int]:
    """(height, width) from the frame header of a JPEG with three components; (0, 0) without one."""
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
            return (height, width) if data[position + 9] == 3 else (0, 0)
        fill_byte = marker == 0xFF
        position += 1 if fill_byte else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 0


def _field_descriptors(images):
    fields = {**dict.fromkeys(images, IMAGE_FIELD), "label": INT_FIELD}
    descriptors = np.zeros(len(fields), FIELD)
    for descriptor, (name, type_id) in zip(descriptors, fields.items(), strict=True):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = list(name.encode("ascii"))
    return descriptors


def _fail(path, what):
    raise UserError(f"{path} did not read back from the disk as it was written ({what} is wrong); is the disk sound?")
