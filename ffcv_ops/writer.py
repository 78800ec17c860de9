"""A .beton from any indexable Python dataset, with FFCV's fields and the checksums that our loaders hold them against.

    write_beton("train.beton", torchvision.datasets.ImageFolder("photos"))

The encoders are FFCV's own. The bytes depend on the samples, the fields and the page size alone. Pyramids of levels,
shards, and conversions that go on after a kill: the repository's write_datasets.py.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from xxhash import xxh64, xxh64_intdigest

from ffcv_ops import host, stock
from ffcv_ops.errors import UserError, one_line, writing
from ffcv_ops.files import write_atomically
from ffcv_ops.modes import to_rgb, upright
from ffcv_ops.storage.beton_file import sidecar
from ffcv_ops.storage.index import pointers_of
from ffcv_ops.storage.validate import PAGE_SIZES

AT_ONCE = 256  # samples in memory


def write_beton(path: Path | str, dataset, *, fields: dict | None = None, page_size=2**23, workers=None) -> None:
    """Writes `path`, and beside it x.json and x.xxh64. A file that is there is replaced when the new one is whole.

    dataset: has a length; its items are tuples (image, label, further values ...) or dicts. fields: {name: a field of
    ffcv.fields}, in the order of a tuple's values; None: told from the first sample, an image as JPEG of quality 90.
    Pillow's images are stored upright as their EXIF data ask, and where they are transparent, over white.
    page_size: bytes, no value may be larger. workers: threads that index the dataset and encode, None: one for each
    core. `dataset.classes`, where there is one, names the classes of `label`. Raises UserError for values that do not
    fit their fields.
    """
    path, samples = Path(path), len(dataset)
    if path.suffix != ".beton" or samples == 0 or page_size not in PAGE_SIZES:
        raise UserError(
            f"{path}: a .beton of at least one sample is written, with pages of 2^21 to 2^31 bytes, not {samples:,}"
            f" samples on pages of {page_size:,}"
        )
    fields = fields or _fields_of(dataset[0])
    for name in fields:
        if not (name.isascii() and 0 < len(name) <= 16):
            raise UserError(f"{path}: a field is named by up to 16 ASCII characters, not {one_line(name)!r}")

    def encoded(number):
        return _encoded(number, dataset[number], fields)

    def write(temporary):
        with open(temporary, "wb") as file, ThreadPoolExecutor(workers or host.usable_cores()) as pool:
            found.update(_write(file, encoded, samples, fields, page_size, pool))

    found: dict = {}
    with writing(path):
        write_atomically(path, write)
        checksums = found.pop("checksums")
        write_atomically(path.with_suffix(".xxh64"), lambda temporary: temporary.write_bytes(checksums))
        found |= {"bytes": path.stat().st_size, "classes": list(map(str, getattr(dataset, "classes", ())))}
        write_atomically(sidecar(path), lambda temporary: temporary.write_text(json.dumps(found)))


def _fields_of(sample) -> dict:
    """The fields of a sample: images as JPEG."""
    values = sample
    if not isinstance(sample, dict):
        names = ("image", "label", *(f"field_{number}" for number in range(2, len(sample))))
        values = dict(zip(names, sample, strict=False))
    return {name: _field_of(name, value) for name, value in values.items()}


def _field_of(name, value):
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Image.Image) or (
        isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3
    ):
        return stock.RGBImageField(write_mode="jpg", jpeg_quality=90)
    if isinstance(value, torch.Tensor):
        return stock.TorchTensorField(value.dtype, tuple(value.shape))
    if isinstance(value, np.ndarray):
        return stock.NDArrayField(value.dtype, value.shape)
    kinds = {
        (int, np.integer): stock.IntField,
        (float, np.floating): stock.FloatField,
        (bytes, bytearray): stock.BytesField,
        (str, dict, list): stock.JSONField,
    }
    for types, field in kinds.items():
        if isinstance(value, types):
            return field()
    raise UserError(f"field {name!r}: there is no field for a {type(value).__name__}; give `fields`")


def _encoded(number, sample, fields):
    """The metadata (a record of one) and the stored bytes (perhaps empty) of each field of a sample."""
    values = [sample[name] for name in fields] if isinstance(sample, dict) else sample
    if len(values) != len(fields):
        raise UserError(f"sample {number}: {len(values)} values for the fields {', '.join(fields)}")
    return [_encode(number, name, field, value) for (name, field), value in zip(fields.items(), values, strict=True)]


def _encode(number, name, field, value):
    record, stored = np.zeros(1, field.metadata_type), [np.empty(0, np.uint8)]

    def allocate(size):
        stored.append(np.empty(int(size), np.uint8))
        return 0, stored[-1]

    try:
        if isinstance(field, stock.NDArrayField):  # FFCV checks neither type nor shape
            value = np.ascontiguousarray(value).astype(field.dtype, casting="same_kind", copy=False)
            if value.shape != tuple(field.shape):
                raise ValueError(f"shape {value.shape}, not {tuple(field.shape)}")
            stock.NDArrayField.encode(field, record, value, allocate)
        elif isinstance(field, stock.RGBImageField):
            value = upright(to_rgb(value), value) if isinstance(value, Image.Image) else value
            field.encode(record, np.ascontiguousarray(value), allocate)
        elif isinstance(field, stock.BytesField) and not isinstance(field, stock.JSONField):
            field.encode(record, np.frombuffer(value, np.uint8), allocate)
        else:
            field.encode(record, value, allocate)
    except Exception as error:  # FFCV's encoders raise whatever they meet
        what = f"{type(field).__name__} takes no {type(value).__name__} ({one_line(str(error))})"
        raise UserError(f"sample {number}, field {name}: {what}") from error
    if name == "label" and isinstance(field, stock.IntField) and record[0] < 0:
        raise UserError(f"sample {number}: label is {record[0]}, but classes count from 0; name the field otherwise")
    return record, stored[-1]


def _write(file, encoded, samples, fields, page_size, pool) -> dict:
    """The whole file. Returns what lies beside it."""
    metadata = np.zeros(samples, stock.get_metadata_type(list(fields.values())))
    columns = [metadata[name] for name in metadata.dtype.names]
    pointers = [pointers_of(field, column) for field, column in zip(fields.values(), columns, strict=True)]
    descriptors = _descriptors(fields)
    first_page = stock.HeaderType.itemsize + descriptors.nbytes + metadata.nbytes
    position = -(-first_page // page_size) * page_size
    table, checksums = [], []
    file.seek(position)
    for start in range(0, samples, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, samples))
        for number, sample in zip(numbers, pool.map(encoded, numbers), strict=True):
            for column, places, (record, stored) in zip(columns, pointers, sample, strict=True):
                column[number] = record[0]
                if not len(stored):
                    continue
                if len(stored) > page_size:
                    raise UserError(f"sample {number}: a value of {len(stored):,} bytes; give a larger page_size")
                if position % page_size + len(stored) > page_size:
                    position = -(-position // page_size) * page_size
                    file.seek(position)
                file.write(stored)
                places[number] = position
                table.append((number, position, len(stored)))
                checksums.append(xxh64_intdigest(stored))
                position += len(stored)
    header = np.array((stock.CURRENT_VERSION, len(fields), page_size, samples, position), stock.HeaderType)
    index = header.tobytes() + descriptors.tobytes() + metadata.tobytes()
    allocations = np.array(table, stock.ALLOC_TABLE_TYPE).tobytes()
    file.write(allocations)
    file.seek(0)
    file.write(index)
    stored = np.array(checksums, "<u8").tobytes()
    digest = xxh64(index)
    digest.update(allocations)
    return {"index_xxh64": digest.hexdigest(), "checksums_xxh64": xxh64(stored).hexdigest(), "checksums": stored}


def _descriptors(fields):
    numbers = {kind: number for number, kind in stock.TYPE_ID_HANDLER.items()}
    descriptors = np.zeros(len(fields), stock.FieldDescType)
    for descriptor, (name, field) in zip(descriptors, fields.items(), strict=True):
        descriptor["type_id"] = numbers[type(field)]
        descriptor["name"][: len(name)] = list(name.encode())
        descriptor["arguments"] = np.frombuffer(field.to_binary().tobytes(), np.uint8)
    return descriptors
