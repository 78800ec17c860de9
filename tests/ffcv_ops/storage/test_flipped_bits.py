"""Single bits of .beton files, with what belongs beside them and without: no crash, no pixels but a JPEG's own."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType
from ffcv.writer import DatasetWriter

from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import open_index
from tests.ffcv_ops.storage.flip_bits import STAGE
from tools.verify import verify
from training.loading import Placement, train_loader

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = 3

pytestmark = pytest.mark.timeout(600)  # a busy machine may have to compile the kernels first


@pytest.fixture
def stock(tmp_path, tiles):
    """stock(mode, page_size) writes a few tiles with FFCV's writer."""

    def stock(mode, page_size=2**21, images=tiles[:SAMPLES]):
        fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
        path = tmp_path / "stock.beton"
        samples = [(image, number) for number, image in enumerate(images)]
        DatasetWriter(str(path), fields, num_workers=1, page_size=page_size).from_indexed_dataset(samples)
        return path

    return stock


def bits(begin, count, step=1):
    return f"{8 * begin}:{8 * (begin + count)}:{step}"


def parts_of(path):
    """Where the bytes lie: (begin, count) of header, names of fields, metadata, allocation table, images."""
    reader = Reader(str(path))
    descriptors = HeaderType.itemsize, reader.num_fields * FieldDescType.itemsize
    table = int(reader.header["alloc_table_ptr"])
    names = [(descriptors[0] + k * FieldDescType.itemsize, 17) for k in range(reader.num_fields)]
    images = [(int(place), int(size)) for _, place, size in reader.alloc_table]
    metadata = sum(descriptors), reader.metadata.nbytes
    return [(0, HeaderType.itemsize)], names, [metadata], [(table, path.stat().st_size - table)], images


def flipped(path, parts, least=0.0):
    """What became of each bit: {(bit, cache): words}."""
    words = [sys.executable, "-m", "tests.ffcv_ops.storage.flip_bits", str(path), str(least), *parts]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert ended.returncode == 0, f"status {ended.returncode} at bit {ended.stdout.splitlines()[-1:]}: {ended.stderr}"
    return {(int(bit), cache): found for bit, cache, *found in map(str.split, ended.stdout.splitlines())}


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_without_checksums(stock, mode):
    """A file of stock FFCV: every bit of header, metadata and table, and of the names and kinds of the fields."""
    path = stock(mode)
    header, names, metadata, table, _ = parts_of(path)
    found = flipped(path, [bits(*part) for part in (*header, *names, *metadata, *table)])
    assert set(map(tuple, found.values())) == {("refused",), ("same",)}
    assert all(words == ["refused"] for (bit, _), words in found.items() if bit < 8 * HeaderType.itemsize)
    kinds = Counter(map(" ".join, found.values()))
    assert kinds["same"] < 0.35 * len(found)  # labels, filling, sizes of a page's last JPEG


def test_a_pyramid_without_checksums(tmp_path, encoded_levels, write_beton):
    """Levels that are read as such, of files that have lost what belongs beside them."""
    path = write_beton(tmp_path / "x.beton", encoded_levels[:SAMPLES])
    for ending in (".json", ".xxh64", ".files.txt"):
        path.with_suffix(ending).unlink()
    header, _, metadata, table, _ = parts_of(path)
    sides = sides_of(path, metadata[0][0])
    found = flipped(path, [bits(*part) for part in (*header, *metadata, *table)], least=1.2)
    for (bit, cache), words in found.items():
        # The sides of a level that is not decoded are held against those of the others, which are rounded.
        others = [[str(sides[bit // 8])]] if bit // 8 in sides and cache == "os" else []
        assert words in [["refused"], ["same"], *others], (bit, cache, words)
    assert sum(words not in (["refused"], ["same"]) for words in found.values()) < 0.3 * 8 * len(sides)


def sides_of(path, start):
    """The bytes of the metadata that hold a width or a height, and the sample of each."""
    record = Reader(str(path)).metadata.dtype
    images = [record.fields[name] for name in record.names if record[name].names]  # of each: type, place
    own = [
        begin + image.fields[side][1] + k for image, begin in images for side in ("width", "height") for k in range(2)
    ]
    return {start + sample * record.itemsize + place: sample for sample in range(SAMPLES) for place in own}


def test_with_checksums_every_bit_is_noticed(tmp_path, encoded, write_beton):
    path = write_beton(tmp_path / "x.beton", encoded[:SAMPLES])
    header, names, metadata, table, images = parts_of(path)
    parts = [bits(*part) for part in (*header, *names, *metadata, *table)] + [bits(*part, 61) for part in images]
    assert {tuple(words) for words in flipped(path, parts).values()} == {("refused",)}


def test_bits_of_a_jpeg_without_checksums(stock):
    """The decoder notices some; the others change the pixels of that image alone."""
    path = stock("jpg")
    *_, images = parts_of(path)
    found = flipped(path, [bits(*part, 61) for part in images])
    places = Reader(str(path)).metadata["f0"]["data_ptr"].tolist()
    for (bit, _), words in found.items():
        own = max(range(SAMPLES), key=lambda sample: (places[sample] <= bit // 8, places[sample]))
        assert words in (["refused"], ["same"], [str(own)])


# --- more than a bit ------------------------------------------------------------------------------------------------


def change(path, dtype, at, **values):
    data = np.fromfile(path, np.uint8)
    record = data[at : at + dtype.itemsize].view(dtype)
    for name, value in values.items():
        record[name] = value
    data.tofile(path)


@pytest.mark.parametrize("page_size", [2**20, 2**21, 2**23, 2**31, 3 * 2**20])
def test_another_page_size(stock, page_size):
    path = stock("jpg", page_size=2**22)
    change(path, HeaderType, 0, page_size=page_size)
    with pytest.raises(UserError, match=r"damaged: (a page size of|images begin at byte)") as caught:
        open_index(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="damaged"):
        verify(path, workers=1)


@pytest.mark.parametrize("cache", ["os", "process"])
def test_an_image_that_is_longer_than_a_page(stock, cache):
    """900 x 900 raw pixels in pages of 2 MiB: FFCV's allocator refuses them, files of other writers may have them."""
    noise = np.random.default_rng(0)
    path = stock("raw", 2**22, [noise.integers(0, 256, (900, 900, 3), dtype=np.uint8)])
    reader, data = Reader(str(path)), np.fromfile(path, np.uint8)
    data = np.concatenate([data[: 2**21], data[2**22 :]])  # the image begins at the first page of the new size
    header, start = data[: HeaderType.itemsize].view(HeaderType), HeaderType.itemsize + 2 * FieldDescType.itemsize
    header["page_size"] = 2**21
    header["alloc_table_ptr"] -= 2**21
    data[start : start + reader.metadata.nbytes].view(reader.metadata.dtype)["f0"]["data_ptr"] = 2**21
    data[-ALLOC_TABLE_TYPE.itemsize :].view(ALLOC_TABLE_TYPE)["ptr"] = 2**21
    data.tofile(path)
    with pytest.raises(UserError, match="does not lie within one page of 2097152 bytes"):
        train_loader(path, 1, STAGE, seed=0, placement=Placement(cache=cache))


def test_two_samples_that_change_places(stock):
    """Their numbers in the allocation table tell it."""
    path = stock("jpg")
    reader = Reader(str(path))
    start, size = HeaderType.itemsize + 2 * FieldDescType.itemsize, reader.metadata.dtype.itemsize
    data = np.fromfile(path, np.uint8)
    one, two = data[start : start + size].copy(), data[start + size : start + 2 * size].copy()
    data[start : start + size], data[start + size : start + 2 * size] = two, one
    data.tofile(path)
    with pytest.raises(UserError, match="2 of 3 entries are damaged, the first is sample 0"):
        open_index(path)


def test_images_that_overlap(stock):
    path = stock("jpg")
    table = int(Reader(str(path)).header["alloc_table_ptr"])
    size = int(Reader(str(path)).alloc_table["size"][0])
    change(path, ALLOC_TABLE_TYPE, table, size=size + 1)
    with pytest.raises(UserError, match="overlap"):
        open_index(path)
