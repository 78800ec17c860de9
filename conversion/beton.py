"""FFCV's file layout, version 2, for an `image` (RGBImageField) and a `label` (IntField): written, checked, read.

    header | field descriptors | metadata of each sample | zeros | image data in pages | allocation table

All numbers are little-endian. Image data begin at a multiple of the page size, and none crosses such a multiple, as
FFCV's process cache asks. The bytes depend on the samples and the page size alone. Layout and codes are written out
here because importing ffcv takes seconds; a test holds them against ffcv's own.
"""

import hashlib
import io
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from conversion.encode import MODES
from ffcv_ops.errors import BadInput

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
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
FIELDS = {"image": 2, "label": 1}  # name -> FFCV's type number
METADATA_START = HEADER.itemsize + len(FIELDS) * FIELD.itemsize


def write(path: Path, samples, *, capacity: int, page_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes the `samples`, an iterable of at most `capacity` (Encoded, label), and syncs the file to the disk.
    Returns the metadata, SAMPLE records, and the CRC-32 of each image's data for `check`."""
    table = np.zeros(capacity, SAMPLE)
    allocations = np.zeros(capacity, ALLOCATION)
    checksums = np.zeros(capacity, np.uint32)
    position = _next_multiple(METADATA_START + table.nbytes, page_size)
    count = 0
    with open(path, "wb") as file:
        for encoded, label in samples:
            size = len(encoded.data)
            if position % page_size + size > page_size:
                position = _next_multiple(position, page_size)
            file.seek(position)
            file.write(encoded.data)
            table[count] = (MODES[encoded.mode], encoded.width, encoded.height, position), label
            allocations[count] = count, position, size
            checksums[count] = zlib.crc32(encoded.data)
            position += size
            count += 1
        file.seek(position)
        file.write(allocations[:count].tobytes())
        file.seek(0)
        file.write(np.array((VERSION, len(FIELDS), page_size, count, position), HEADER).tobytes())
        file.write(_field_descriptors().tobytes())
        file.write(table[:count].tobytes())
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # `check` shall read the disk, not the memory
    return table[:count], checksums[:count]


def check(path: Path, table: np.ndarray, checksums: np.ndarray, *, classes: int, after_each=lambda: None) -> str:
    """Reads the file back: holds it against what `write` returned, and tests that every record makes sense.
    Calls `after_each` after each sample. Returns the file's SHA-256 in hex digits; a fault is a `BadInput`."""
    file_size = path.stat().st_size
    header = np.fromfile(path, HEADER, 1)[0]
    count, page_size, data_end = (int(header[name]) for name in ("num_samples", "page_size", "alloc_table_ptr"))
    if (header["version"], header["num_fields"], count) != (VERSION, len(FIELDS), len(table)):
        _fail(path, "the header")
    if page_size < MIN_PAGE_SIZE or page_size & (page_size - 1) or file_size != data_end + count * ALLOCATION.itemsize:
        _fail(path, "the page size or the file's length")
    if not np.array_equal(np.fromfile(path, FIELD, len(FIELDS), offset=HEADER.itemsize), _field_descriptors()):
        _fail(path, "the field descriptors")
    if not np.array_equal(np.fromfile(path, SAMPLE, count, offset=METADATA_START), table):
        _fail(path, "the samples' metadata")
    allocations = np.fromfile(path, ALLOCATION, count, offset=data_end)
    _check_records(path, table, allocations, page_size=page_size, data_end=data_end, classes=classes)
    return _check_data(path, table["image"], allocations, checksums, page_size, after_each)


def _check_records(path, table, allocations, *, page_size, data_end, classes):
    image, start, size = table["image"], allocations["ptr"].astype(np.int64), allocations["size"].astype(np.int64)
    area = 3 * image["height"].astype(np.int64) * image["width"].astype(np.int64)
    first = METADATA_START + table.nbytes
    faults = {
        "the label": (table["label"] < 0) | (table["label"] >= classes),
        "the side of an image": area == 0,
        "the mode": ~np.isin(image["mode"], list(MODES.values())),
        "the length of raw pixels": (image["mode"] == MODES["raw"]) & (size != area),
        "the allocation table": (allocations["sample_id"] != np.arange(len(table))) | (image["data_ptr"] != start),
        "the place of an image": (start < np.append(first, start[:-1] + size[:-1])) | (start + size > data_end),
        "an image over a page's end": start // page_size != (start + size - 1) // page_size,
    }
    for what, wrong in faults.items():
        if wrong.any():
            _fail(path, f"sample {wrong.argmax()}: {what}")


def _check_data(path, image, allocations, checksums, page_size, after_each):
    """One pass over the file in pages, none of which cuts an image."""
    digest = hashlib.sha256()
    sample = 0
    with open(path, "rb") as file:
        for page_start in range(0, path.stat().st_size, page_size):
            page = memoryview(file.read(page_size))
            digest.update(page)
            while sample < len(image) and allocations["ptr"][sample] < page_start + page_size:
                start = int(allocations["ptr"][sample]) - page_start
                data = page[start : start + int(allocations["size"][sample])]
                if zlib.crc32(data) != checksums[sample]:
                    _fail(path, f"sample {sample}: the image's bytes")
                size = image["height"][sample], image["width"][sample]
                if image["mode"][sample] == MODES["jpg"] and jpeg_size(data) != size:
                    _fail(path, f"sample {sample}: the size in the JPEG's header")
                sample += 1
                after_each()
    return digest.hexdigest()


def read(path: Path):
    """Yields (RGB array, label) of each sample of a file that `write` wrote."""
    header = np.fromfile(path, HEADER, 1)[0]
    table = np.fromfile(path, SAMPLE, int(header["num_samples"]), offset=METADATA_START)
    allocations = np.fromfile(path, ALLOCATION, len(table), offset=int(header["alloc_table_ptr"]))
    with open(path, "rb") as file:
        for (image, label), (_, start, size) in zip(table, allocations, strict=True):
            file.seek(start)
            data = file.read(size)
            if image["mode"] == MODES["jpg"]:
                yield np.asarray(Image.open(io.BytesIO(data))), int(label)
            else:
                yield np.frombuffer(data, np.uint8).reshape(image["height"], image["width"], 3), int(label)


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


def _field_descriptors():
    descriptors = np.zeros(len(FIELDS), FIELD)
    for descriptor, (name, type_id) in zip(descriptors, FIELDS.items(), strict=True):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = list(name.encode("ascii"))
    return descriptors


def _next_multiple(position, page_size):
    return -(-position // page_size) * page_size


def _fail(path, what):
    raise BadInput(f"{path} did not read back from the disk as it was written ({what} is wrong); is the disk sound?")
