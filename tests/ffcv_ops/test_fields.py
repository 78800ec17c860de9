"""A .beton that is not what it claims is refused with one line, before anything reads through its pointers."""

import numpy as np
import pytest
from ffcv.fields import FloatField, IntField
from ffcv.reader import Reader
from ffcv.types import HeaderType
from ffcv.writer import DatasetWriter

from ffcv_ops.errors import BadInput
from ffcv_ops.fields import describe, sidecar, source_of


def refused(path, *words):
    with pytest.raises(BadInput) as caught:
        describe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path).removesuffix(".beton"))
    for word in words:
        assert word in message
    return message


@pytest.fixture
def copy(jpg_beton, tmp_path):
    """copy(change) writes a changed copy: `change` gets the bytes as a writable array and may return other bytes."""

    def copy(change):
        data = np.fromfile(jpg_beton, np.uint8)
        changed = change(data)
        path = tmp_path / "copy.beton"
        (data if changed is None else changed).tofile(path)
        return path

    return copy


def test_a_good_file(jpg_beton, raw_beton, copy):
    for path in (jpg_beton, raw_beton, copy(lambda data: None)):
        beton = describe(path)
        assert (beton.samples, beton.classes, beton.class_names) == (96, 5, None)


def test_missing(tmp_path):
    refused(tmp_path / "nothing.beton", "no such file", "write_datasets.py")


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_truncated(copy, share):
    refused(copy(lambda data: data[: int(len(data) * share)]))


@pytest.mark.parametrize("cut", [1, 8, 23, 24, 240])
def test_the_end_is_missing(copy, cut):
    refused(copy(lambda data: data[:-cut]))


def test_other_files(tmp_path, photos):
    path = tmp_path / "copy.beton"
    path.write_bytes(b"GIF89a" * 1000)
    refused(path, "not a .beton file")
    path.write_bytes(b"")
    refused(path, "0 bytes")


@pytest.mark.parametrize(
    "field, value",
    [("version", 3), ("num_fields", 0), ("num_samples", 0), ("num_samples", 10**9), ("num_samples", 200),
     ("alloc_table_ptr", 0), ("alloc_table_ptr", 2**62), ("num_fields", 60000)],
)  # fmt: skip
def test_damaged_header(copy, field, value):
    def change(data):
        data[: HeaderType.itemsize].view(HeaderType)[field] = value

    refused(copy(change))


@pytest.mark.parametrize("column, value", [("data_ptr", 2**60), ("data_ptr", 12345), ("height", 0), ("mode", 7)])
def test_damaged_metadata(jpg_beton, copy, column, value):
    reader = Reader(str(jpg_beton))
    start = HeaderType.itemsize + reader.field_descriptors.nbytes

    def change(data):
        metadata = data[start : start + reader.metadata.nbytes].view(reader.metadata.dtype)
        metadata["f0"][column][5] = value

    assert "sample 5" in refused(copy(change), "1 of 96 entries are damaged")


def test_damaged_table(copy, jpg_beton):
    start = int(Reader(str(jpg_beton)).header["alloc_table_ptr"])

    def change(data):
        data[start + 16 : start + 24].view("<u8")[0] = 2**40

    refused(copy(change), "entries are damaged")


def test_foreign_fields(tmp_path):
    path = tmp_path / "copy.beton"
    DatasetWriter(str(path), {"covariate": FloatField(), "label": IntField()}, num_workers=1).from_indexed_dataset(
        [(1.0, 0), (2.0, 1)]
    )
    refused(path, "needs an RGB field `image`")


def test_class_names_come_from_the_sidecar(copy):
    path = copy(lambda data: None)
    sidecar(path).write_text('{"classes": ["a", "b", "c", "d", "e", "f"]}')
    beton = describe(path)
    assert (beton.classes, beton.class_names) == (6, ("a", "b", "c", "d", "e", "f"))
    sidecar(path).write_text("[]")
    refused(path, "not the description of a .beton")


def test_source_names(tmp_path):
    path = tmp_path / "x.beton"
    assert source_of(path, 1) == ""
    (tmp_path / "x.files.txt").write_text("a/0.jpg\na/1.jpg\n")
    assert source_of(path, 1) == "a/1.jpg"
    assert source_of(path, 2) == ""
