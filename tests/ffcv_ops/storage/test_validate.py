"""A .beton that is not what it claims is refused with one line, before anything reads through its pointers."""

import numpy as np
import pytest
from ffcv.fields import FloatField, IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.types import HeaderType
from ffcv.writer import DatasetWriter

from conversion import beton as layout
from conversion.encode import Encoded
from ffcv_ops.errors import UserError
from ffcv_ops.storage.beton_file import sidecar
from ffcv_ops.storage.index import describe


def refused(path, *words):
    with pytest.raises(UserError) as caught:
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
        assert beton.levels == ("image",)


def test_missing(tmp_path):
    refused(tmp_path / "nothing.beton", "no such file")


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

    refused(copy(change), "an image does not lie within one page")


def test_foreign_fields(tmp_path):
    path = tmp_path / "copy.beton"
    DatasetWriter(str(path), {"covariate": FloatField(), "label": IntField()}, num_workers=1).from_indexed_dataset(
        [(1.0, 0), (2.0, 1)]
    )
    refused(path, "needs an RGB field `image`")


NAMES = ("image", "image_48", "image_24")


def raw(height, width):
    return Encoded.of("raw", height, width, bytes(3 * height * width))


@pytest.fixture
def pyramid(tmp_path):
    """pyramid(change) writes ten samples of three levels and `change`s their metadata in the file."""

    def pyramid(change=lambda metadata: None, names=NAMES):
        path = tmp_path / "copy.beton"
        sample = (raw(64, 40), raw(48, 30), raw(24, 15)), 3
        table, _ = layout.write(path, [sample] * 10, capacity=10, page_size=2**21, images=names)
        changed = table.copy()
        change(changed)
        content = path.read_bytes().replace(table.tobytes(), changed.tobytes())
        path.write_bytes(content)
        return path

    return pyramid


def test_levels_from_the_largest_to_the_smallest(pyramid):
    assert describe(pyramid()).levels == NAMES
    names = ("image", "image_100", "image_24")
    assert describe(pyramid(names=names)).levels == names


def test_a_pyramid_that_the_stock_writer_wrote(tmp_path, tiles):
    """FFCV cuts the sides to whole pixels; other names than those of levels are other pictures, and none of ours."""
    path = tmp_path / "stock.beton"
    fields = {"label": IntField(), "image_x": RGBImageField(write_mode="raw")}
    fields |= {f"image_{side}": RGBImageField(write_mode="raw", max_resolution=side) for side in (33, 61)}
    fields |= {"image": RGBImageField(write_mode="raw")}
    samples = [(1, tiles[-1], tile, tile, tile) for tile in tiles]
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)
    assert describe(path).levels == ("image", "image_61", "image_33")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "column, value", [("data_ptr", 2**60), ("data_ptr", 12345), ("height", 0), ("width", 1), ("mode", 7)]
)
def test_damaged_levels(pyramid, name, column, value):
    def change(metadata):
        metadata[name][column][5] = value

    assert "sample 5" in refused(pyramid(change), "1 of 10 entries are damaged")


@pytest.mark.parametrize(
    "height, width, mode",
    [(24, 13, 0), (24, 17, 0), (28, 15, 0), (15, 24, 0), (49, 31, 0), (48, 31, 0), (1000, 625, 0), (24, 15, 2)],
)
def test_levels_of_another_shape_or_larger(pyramid, height, width, mode):
    """JPEGs, whose length does not tell their size: what the record claims must be a reduced full image."""

    def change(metadata):
        metadata["image_24"][["mode", "height", "width"]] = mode, height, width

    refused(pyramid(change), "10 of 10 entries are damaged, the first is sample 0")


@pytest.mark.parametrize("width", [14, 15, 16])
def test_levels_may_be_rounded(pyramid, width):
    def change(metadata):
        metadata["image_24"][["mode", "width"]] = 0, width

    assert describe(pyramid(change)).levels == NAMES


def test_class_names_come_from_the_sidecar(copy):
    path = copy(lambda data: None)
    sidecar(path).write_text('{"classes": ["a", "b", "c", "d", "e", "f"]}')
    beton = describe(path)
    assert (beton.classes, beton.class_names) == (6, ("a", "b", "c", "d", "e", "f"))
    sidecar(path).write_text("[]")
    refused(path, "not the description of a .beton")


def test_what_lies_beside_a_file_cannot_harm(copy):
    """A description nested too deeply, an image that claims gigapixels, a name with control characters."""
    path = copy(lambda data: None)
    sidecar(path).write_text('{"classes": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refused(path, "not the description of a .beton")
    sidecar(path).unlink()

    def huge(data):
        record = data[layout.metadata_start() :][: layout.sample_type().itemsize].view(layout.sample_type())
        record["image"]["height"] = record["image"]["width"] = 65_500

    path = copy(huge)
    path.with_suffix(".files.txt").write_text("\033[2Jgone\n" * 96)
    assert refused(path, "the first is sample 0", "gone").isprintable()
