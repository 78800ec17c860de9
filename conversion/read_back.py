"""What was written to a .beton, read back from the disk and compared before the file gets its final name."""

import os
from pathlib import Path

import numpy as np
from xxhash import xxh64_intdigest

from conversion import beton, jpeg
from conversion.direct import BLOCK, aligned_buffer, next_multiple, read_at
from conversion.encode import MODES
from ffcv_ops.errors import UserError

READ_BYTES = 2**21  # at a time


def check_images(path: Path, file, table: np.ndarray, allocations: np.ndarray, checksums: np.ndarray):
    """Reads images of the open file `path` back from the disk. A `UserError` where one does not have its checksum, or
    is a JPEG of another size than its record says.

    table: the samples' records. allocations, checksums: of their images, in the same order; at least one."""
    by_place = np.argsort(allocations["ptr"])
    allocations, checksums = allocations[by_place], checksums[by_place].tolist()
    records, samples = _records_of(table, allocations).tolist(), allocations["sample_id"].tolist()
    starts, ends = allocations["ptr"].astype(np.int64), (allocations["ptr"] + allocations["size"]).astype(np.int64)
    os.posix_fadvise(file.fileno(), starts[0], ends[-1] - starts[0], os.POSIX_FADV_DONTNEED)
    buffer = aligned_buffer(max(READ_BYTES, int((ends - starts).max()) + BLOCK))
    begin = 0
    while begin < len(starts):
        low = int(starts[begin]) // BLOCK * BLOCK
        stop = max(begin + 1, int(np.searchsorted(ends, low + READ_BYTES, "right")))
        try:
            count = read_at(file, low, buffer[: next_multiple(int(ends[stop - 1]) - low)])
        except OSError as error:
            _fail(path, f"sample {samples[begin]}, or a later one: {error.strerror}")
        for number in range(begin, stop):
            data = buffer[starts[number] - low : min(ends[number] - low, count)]
            mode, width, height, _ = records[number]
            if xxh64_intdigest(data) != checksums[number]:
                _fail(path, f"sample {samples[number]}: the image's bytes")
            if mode == MODES["jpg"] and jpeg.size_of(data) != (height, width):
                _fail(path, f"sample {samples[number]}: the size in the JPEG's header")
        begin = stop


def _records_of(table, allocations):
    """The IMAGE record of each allocation."""
    records = np.concatenate([table[name] for name in table.dtype.names[:-1]])
    records = records[np.argsort(records["data_ptr"])]
    return records[np.searchsorted(records["data_ptr"], allocations["ptr"])]


def check_index(path: Path, table: np.ndarray, checksums: np.ndarray, *, classes: int):
    """Reads all but the images back, compares it with what `BetonWriter.finish` returned, and checks that every record
    makes sense. A `UserError` where it does not."""
    images = table.dtype.names[:-1]
    file_size = path.stat().st_size
    header = np.fromfile(path, beton.HEADER, 1)[0]
    count, page_size, data_end = (int(header[name]) for name in ("num_samples", "page_size", "alloc_table_ptr"))
    if (header["version"], header["num_fields"], count) != (beton.VERSION, len(images) + 1, len(table)):
        _fail(path, "the header")
    table_bytes = len(checksums) * beton.ALLOCATION.itemsize
    if page_size < beton.MIN_PAGE_SIZE or page_size & (page_size - 1) or file_size != data_end + table_bytes:
        _fail(path, "the page size or the file's length")
    descriptors = beton.field_descriptors(images)
    if not np.array_equal(np.fromfile(path, beton.FIELD, len(descriptors), offset=beton.HEADER.itemsize), descriptors):
        _fail(path, "the field descriptors")
    if not np.array_equal(np.fromfile(path, table.dtype, count, offset=beton.metadata_start(images)), table):
        _fail(path, "the samples' metadata")
    allocations = np.fromfile(path, beton.ALLOCATION, len(checksums), offset=data_end)
    _check_places(path, table, allocations, page_size=page_size, data_end=data_end)
    _check_records(path, table, allocations, classes=classes)


def _check_places(path, table, allocations, *, page_size, data_end):
    """The stored images lie one behind the other, and none crosses a page's end."""
    start, size = allocations["ptr"].astype(np.int64), allocations["size"].astype(np.int64)
    first = beton.metadata_start(table.dtype.names[:-1]) + table.nbytes
    faults = {
        "the allocation table": allocations["sample_id"] >= len(table),
        "the place of an image": (start < np.append(first, start[:-1] + size[:-1])) | (start + size > data_end),
        "an image over a page's end": start // page_size != (start + size - 1) // page_size,
    }
    for what, wrong in faults.items():
        if wrong.any():
            _fail(path, f"sample {allocations['sample_id'][wrong.argmax()]}: {what}")


def _check_records(path, table, allocations, *, classes):
    """Every record makes sense, and every stored image belongs to one."""
    owners = np.zeros(len(allocations), np.int64)
    faults, previous = {"the label": (table["label"] < 0) | (table["label"] >= classes)}, None
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
        owners += np.bincount(place[image != previous] if previous is not None else place, minlength=len(owners))
        previous = image
    for what, wrong in faults.items():
        if wrong.any():
            _fail(path, f"sample {wrong.argmax()}: {what}")
    if (owners != 1).any():
        _fail(path, f"sample {allocations['sample_id'][(owners != 1).argmax()]}: the allocation table")


def _fail(path, what):
    raise UserError(f"{path} did not read back from the disk as it was written ({what} is wrong); check the disk")
