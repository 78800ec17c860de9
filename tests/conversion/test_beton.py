"""The layout against stock FFCV's own types, writer, reader and loader; the check against damage in every region."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from ffcv import types as ffcv_types
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from PIL import Image

from conversion import beton, jpeg
from conversion.direct import open_direct
from conversion.encode import Encoded, encode_rgb
from conversion.read_back import check_images, check_index
from ffcv_ops.errors import UserError

PAGE = beton.MIN_PAGE_SIZE


def written(path, samples, page_size=PAGE, capacity=None):
    """The file of samples (Encoded, label)."""
    sample = (((image,), label) for image, label in samples)
    return beton.write(path, sample, capacity=capacity or len(samples), page_size=page_size)


def check(path, table, checksums, *, classes):
    """What is read back of a file that is finished: its tables, then all its images."""
    check_index(path, table, checksums, classes=classes)
    header = np.fromfile(path, beton.HEADER, 1)[0]
    allocations = np.fromfile(path, beton.ALLOCATION, offset=int(header["alloc_table_ptr"]))
    with open_direct(path, os.O_RDONLY) as file:
        check_images(path, file, table, allocations, checksums)


@pytest.fixture(scope="module")
def squares():
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).resize((200, 200)))
    return [np.ascontiguousarray(smooth[8 * k : 8 * k + 64, 5 * k : 5 * k + 64]) for k in range(16)]


def offsets(dtype):
    """(dtype of each leaf, its offset), whatever the fields are called."""
    if dtype.names is None:
        return [(dtype.str, dtype.shape, 0)]
    parts = [dtype.fields[name] for name in dtype.names]
    return [(kind, shape, start + at) for inner, start, *_ in parts for kind, shape, at in offsets(inner)]


def test_types_are_ffcvs():
    sample = ffcv_types.get_metadata_type([RGBImageField(), IntField()])
    pyramid = ffcv_types.get_metadata_type([RGBImageField()] * 3 + [IntField()])
    pairs = [
        (beton.HEADER, ffcv_types.HeaderType),
        (beton.FIELD, ffcv_types.FieldDescType),
        (beton.ALLOCATION, ffcv_types.ALLOC_TABLE_TYPE),
        (beton.sample_type(), sample),
        (beton.sample_type(("image", "image_256", "image_160")), pyramid),
    ]
    for ours, theirs in pairs:
        assert (ours.itemsize, offsets(ours)) == (theirs.itemsize, offsets(theirs))
    assert RGBImageField().metadata_type == beton.IMAGE
    assert ffcv_types.CURRENT_VERSION == beton.VERSION
    for type_id, kind in ((beton.IMAGE_FIELD, RGBImageField), (beton.INT_FIELD, IntField)):
        assert ffcv_types.TYPE_ID_HANDLER[type_id] is kind


def test_same_file_as_the_stock_writer(tmp_path, raw_beton, tiles):
    """Raw pixels, one stock worker: equal but for the zeros with which FFCV fills its last page."""
    ours, theirs = tmp_path / "ours.beton", raw_beton
    stock = Reader(str(theirs))
    samples = [(encode_rgb(tile, mode="raw", quality=1), number % 5) for number, tile in enumerate(tiles)]
    written(ours, samples, page_size=int(stock.page_size))
    reader = Reader(str(ours))
    data_end = int(reader.header["alloc_table_ptr"])
    a, b = ours.read_bytes(), theirs.read_bytes()
    pointer = slice(16, 24)  # the place of the allocation table
    assert a[: pointer.start] == b[: pointer.start]
    assert a[pointer.stop : data_end] == b[pointer.stop : data_end]
    assert np.array_equal(reader.alloc_table, stock.alloc_table)
    assert np.array_equal(reader.metadata, stock.metadata)


def test_images_never_cross_a_page(tmp_path):
    rng = np.random.default_rng(1)
    sizes = [PAGE, 1, PAGE - 1, 1, 1, PAGE - 1, *rng.integers(1, PAGE // 2, 60)]
    samples = [(Encoded.of("raw", 1, 1, bytes([k]) * int(size)), k) for k, size in enumerate(sizes)]
    path = tmp_path / "x.beton"
    table, _ = written(path, samples)
    reader, content = Reader(str(path)), path.read_bytes()
    start, size = reader.alloc_table["ptr"].astype(int), reader.alloc_table["size"].astype(int)
    assert size.tolist() == [int(size) for size in sizes]
    assert (start // PAGE == (start + size - 1) // PAGE).all()
    assert start[0] == PAGE and (np.diff(start) > 0).all()
    assert start[1:4].tolist() == [2 * PAGE, 2 * PAGE + 1, 3 * PAGE], "a page is filled to its last byte"
    assert all(content[s : s + n] == data.data for (data, _), s, n in zip(samples, start, size, strict=True))
    assert np.array_equal(table["image"]["data_ptr"], start)


def test_fewer_samples_than_room(tmp_path, squares):
    """Images that were left out leave no trace but room."""
    samples = [(encode_rgb(square, mode="jpg", quality=90), 3) for square in squares[:5]]
    path = tmp_path / "x.beton"
    table, checksums = written(path, samples, capacity=1000)
    check(path, table, checksums, classes=4)
    reader = Reader(str(path))
    assert reader.num_samples == len(reader.metadata) == len(reader.alloc_table) == 5
    assert [label for _, label in reader.metadata] == [3] * 5


@pytest.fixture(scope="module")
def good(tmp_path_factory, squares):
    path = tmp_path_factory.mktemp("good") / "x.beton"
    modes = ["jpg", "raw"] * 8
    samples = [(encode_rgb(square, mode=modes[k], quality=90), k) for k, square in enumerate(squares)]
    return path, *written(path, samples)


def test_check_sees_every_flipped_bit_that_matters(good, tmp_path):
    """Header, descriptors, metadata, images and table; each byte of the small regions, some of the large ones."""
    path, *expected = good
    content = path.read_bytes()
    table_at = int(np.frombuffer(content, beton.HEADER, 1)["alloc_table_ptr"][0])
    metadata, record = beton.metadata_start(), beton.sample_type().itemsize
    padding = {metadata + k * record + at for k in range(16) for at in (13, 14, 15)}  # between the aligned members
    places = [
        *range(beton.HEADER.itemsize),
        *range(beton.HEADER.itemsize, metadata, 97),
        *(place for place in range(metadata, metadata + 16 * record) if place not in padding),
        *range(PAGE, table_at, 4999),
        *range(table_at, len(content)),
    ]
    damaged = tmp_path / "x.beton"
    damaged.write_bytes(content)
    with open(damaged, "r+b", buffering=0) as file:
        for place in places:
            file.seek(place)
            file.write(bytes([content[place] ^ (1 << place % 8)]))
            with pytest.raises(UserError, match="did not read back"):
                check(damaged, *expected, classes=16)
            file.seek(place)
            file.write(content[place : place + 1])
    check(damaged, *expected, classes=16)


def test_check_sees_a_cut_file_and_a_label_out_of_range(good, tmp_path):
    path, *expected = good
    for length in (len(path.read_bytes()) - 1, PAGE + 100, 1000, 24):
        (tmp_path / "cut.beton").write_bytes(path.read_bytes()[:length])
        with pytest.raises(UserError, match="did not read back"):
            check(tmp_path / "cut.beton", *expected, classes=16)
    with pytest.raises(UserError, match="sample 15: the label"):
        check(path, *expected, classes=15)


def test_check_compares_a_jpeg_with_its_metadata(tmp_path, squares):
    """Right checksums do not excuse a wrong size: it is what decoders crash on."""
    honest = encode_rgb(squares[0], mode="jpg", quality=90)
    path = tmp_path / "x.beton"
    for lie in (honest._replace(width=63), honest._replace(height=65), Encoded.of(*honest[:3], honest.data[2:])):
        expected = written(path, [(honest, 0), (lie, 1)])
        with pytest.raises(UserError, match="sample 1: the size in the JPEG"):
            check(path, *expected, classes=2)


def test_jpeg_size():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 57, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "x" * 5000
    for options in ({}, {"progressive": True}, {"subsampling": "4:4:4"}, {"exif": exif}, {"restart_marker_rows": 1}):
        stream = io.BytesIO()
        image.save(stream, "JPEG", **options)
        assert jpeg.size_of(stream.getvalue()) == (31, 57), options
    plain = stream.getvalue()
    assert jpeg.size_of(plain[:2] + b"\xff\xff\xff" + plain[2:]) == (31, 57), "fill bytes may precede a marker"
    for mode in ("L", "CMYK"):
        stream = io.BytesIO()
        image.convert(mode).save(stream, "JPEG")
        assert jpeg.size_of(stream.getvalue()) == (0, 0)
    assert jpeg.size_of(b"") == jpeg.size_of(plain[:100]) == (0, 0)


def test_read(good, squares):
    path, *_ = good
    for (rgb, label), square, number in zip(beton.read(path), squares, range(16), strict=True):
        assert label == number and rgb.dtype == np.uint8
        if number % 2:
            assert np.array_equal(rgb, square)
        else:
            assert 0 < np.abs(rgb.astype(int) - square).mean() < 4


NAMES = ("image", "image_48", "image_24")


def reduced(square, side):
    """The `Encoded` of a square at another size; raw, so that pixels can be told by eye."""
    return encode_rgb(np.asarray(Image.fromarray(square).resize((side, side))), mode="raw", quality=90)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, squares):
    """700 samples of three levels over several pages; of every fifth, the two larger levels are one image."""
    path = tmp_path_factory.mktemp("pyramid") / "x.beton"
    stored = [[reduced(square, side) for side in (64, 48, 24)] for square in squares]
    samples = [
        ((full, full if k % 5 == 0 else middle, small), k)
        for k in range(700)
        for full, middle, small in [stored[k % 16]]
    ]
    expected = beton.write(path, iter(samples), capacity=720, page_size=PAGE, images=NAMES)
    return path, samples, *expected


def test_pyramid_in_stock_reader(pyramid):
    """Each level is a field of its own, and its bytes are where FFCV looks for them."""
    path, samples, *_ = pyramid
    reader, content = Reader(str(path)), path.read_bytes()
    assert reader.field_names == [*NAMES, "label"]
    assert [type(handler) for handler in reader.handlers.values()] == [RGBImageField] * 3 + [IntField]
    size_at = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
    for (images, label), record in zip(samples, reader.metadata.tolist(), strict=True):
        for image, (mode, width, height, place) in zip(images, record, strict=False):
            assert (mode, width, height) == (1, image.width, image.height)
            assert content[place : place + size_at[place]] == image.data
        assert record[-1] == label


def test_a_level_fills_pages_of_its_own(pyramid):
    """So an epoch that reads one level reads no other; FFCV's rule that a page's end cuts no image holds as well."""
    path, _, table, _ = pyramid
    reader = Reader(str(path))
    start, size = reader.alloc_table["ptr"].astype(int), reader.alloc_table["size"].astype(int)
    assert (start // PAGE == (start + size - 1) // PAGE).all() and (start[1:] >= start[:-1] + size[:-1]).all()
    own = {name: table[name]["data_ptr"] // PAGE for name in NAMES}
    own["image_48"] = own["image_48"][np.arange(700) % 5 > 0]
    pages = [set(pages.tolist()) for pages in own.values()]
    assert [len(part) for part in pages] == [5, 2, 1]
    assert not pages[0] & pages[1] and not pages[0] & pages[2] and not pages[1] & pages[2]


def test_equal_levels_are_stored_once(pyramid):
    path, _, table, _ = pyramid
    shared = table["image"] == table["image_48"]
    assert shared.tolist() == [k % 5 == 0 for k in range(700)]
    allocations = Reader(str(path)).alloc_table
    assert len(allocations) == 3 * 700 - 140 == len(set(allocations["ptr"].tolist()))
    assert np.bincount(allocations["sample_id"].astype(int)).tolist() == [2 if k % 5 == 0 else 3 for k in range(700)]
    assert beton.stored(path) == {
        "image": {"images": 700, "bytes": 700 * 64 * 64 * 3},
        "image_48": {"images": 560, "bytes": 560 * 48 * 48 * 3},
        "image_24": {"images": 700, "bytes": 700 * 24 * 24 * 3},
    }


def test_reading_a_level(pyramid):
    path, samples, *_ = pyramid
    for level, name in enumerate(NAMES):
        for (rgb, label), (images, number) in zip(beton.read(path, name), samples, strict=True):
            assert label == number and rgb.tobytes() == images[level].data


def test_the_full_level_is_the_file_without_levels(tmp_path, pyramid):
    """Byte for byte, image for image, each followed by the next; only the pages of other levels lie between."""
    path, samples, table, _ = pyramid
    single, _ = written(tmp_path / "x.beton", [(images[0], label) for images, label in samples])
    assert np.array_equal(table["image"]["data_ptr"] % PAGE, single["image"]["data_ptr"] % PAGE)
    for (full, _), (alone, _) in zip(beton.read(path), beton.read(tmp_path / "x.beton"), strict=True):
        assert np.array_equal(full, alone)


def test_check_of_a_pyramid(pyramid, tmp_path):
    """Sound as written; any changed byte of a level's records, data or allocation is seen."""
    path, _, *expected = pyramid
    content = path.read_bytes()
    check(path, *expected, classes=700)
    table, allocations = expected[0], Reader(str(path)).alloc_table
    places = [beton.metadata_start(NAMES) + 7 * table.itemsize + at for at in (*range(39), *range(40, 48))]
    places += [int(table[name]["data_ptr"][k]) + 5 for name in NAMES for k in (0, 350, 699)]
    places += [len(content) - allocations.nbytes + 24 * k + at for k in (0, 900, 1959) for at in range(24)]
    damaged = tmp_path / "x.beton"
    damaged.write_bytes(content)
    with open(damaged, "r+b", buffering=0) as file:
        for place in places:
            file.seek(place)
            file.write(bytes([content[place] ^ 1]))
            with pytest.raises(UserError, match="did not read back"):
                check(damaged, *expected, classes=700)
            file.seek(place)
            file.write(content[place : place + 1])


def test_check_of_levels_that_point_to_each_other(pyramid, tmp_path):
    """Records that equal what was meant to be written are not enough: no two levels of different size share data, and
    no stored image is without a record."""
    path, _, table, checksums = pyramid
    content = bytearray(path.read_bytes())
    for at, wrong in ((table["image"]["data_ptr"][1], "allocation table"), (table["image_48"]["data_ptr"][2], "place")):
        lie = table.copy()
        lie["image_48"]["data_ptr"][1] = at
        start = beton.metadata_start(NAMES)
        content[start : start + lie.nbytes] = lie.tobytes()
        (tmp_path / "x.beton").write_bytes(content)
        with pytest.raises(UserError, match=f"sample 1: .*({wrong}|raw pixels)"):
            check(tmp_path / "x.beton", lie, checksums, classes=700)


@pytest.fixture
def stock_batches(run_python):
    """Images and labels that FFCV's loader makes of one image field, with a decoder of stock_loader.py."""

    def stock_batches(path, decoder, *, cache, field="image", batch=4):
        out, script = path.with_suffix(".npz"), Path(__file__).with_name("stock_loader.py")
        done = run_python([script, path, field, decoder, cache, batch, out])
        assert done.returncode == 0, done.stderr
        with np.load(out) as made:
            return made["images"], made["labels"]

    return stock_batches


@pytest.mark.timeout(120)
def test_stock_loader_raw(tmp_path, squares, stock_batches):
    """600 images over several pages through FFCV's process cache, pixel by pixel."""
    path = tmp_path / "x.beton"
    written(path, [(encode_rgb(squares[k % 16], mode="raw", quality=90), k) for k in range(600)])
    images, labels = stock_batches(path, "simple", cache="process")
    assert labels[:, 0].tolist() == list(range(600))
    assert all(np.array_equal(images[k], squares[k % 16]) for k in range(600))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("decoder", "cache", "field"),
    [("centre crop", "os", "image"), ("centre crop", "process", "image_100"), ("random crop", "process", "image")],
)
def test_stock_loader_jpeg(tmp_path, tiles, decoder, cache, field, stock_batches):
    """Images of different sizes through the decoders that ImageNet trainings use, both set to the largest centred
    square: against Pillow's decoding and the mean over each pixel's area. Of a pyramid, its second level."""
    encoded = [encode_rgb(tile, mode="jpg", quality=95) for tile in tiles]
    path = tmp_path / "x.beton"
    if field == "image":
        written(path, [(image, k) for k, image in enumerate(encoded)])
    else:
        full = [encode_rgb(np.repeat(tile[::-1], 3, axis=0), mode="raw", quality=95) for tile in tiles]
        samples = [(pair, k) for k, pair in enumerate(zip(full, encoded, strict=True))]
        beton.write(path, iter(samples), capacity=len(tiles), page_size=PAGE, images=("image", field))
    images, labels = stock_batches(path, decoder, cache=cache, field=field)
    assert labels[:, 0].tolist() == list(range(len(tiles)))
    for found, image in zip(images, encoded, strict=True):
        side = min(image.height, image.width)
        top, left = (image.height - side) // 2, (image.width - side) // 2
        decoded = np.asarray(Image.open(io.BytesIO(image.data)))[top : top + side, left : left + side]
        expected = np.einsum("yh,hwc,xw->yxc", area_shares(32, side), decoded, area_shares(32, side))
        assert np.abs(found - expected).mean() < 2.5


def area_shares(outputs, inputs):
    """[output, input]: the share of each of `inputs` pixels in each of `outputs` larger ones along a line."""
    edges = np.arange(outputs + 1)[:, None] * inputs / outputs
    start = np.arange(inputs)
    overlap = np.minimum(edges[1:], start + 1) - np.maximum(edges[:-1], start)
    return np.clip(overlap, 0, None) * outputs / inputs


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cache", ["os", "process"])
def test_stock_loader_takes_a_level_of_a_pyramid(pyramid, cache, stock_batches):
    """FFCV's loader and decoder on `image_24` alone, pixel by pixel, with both of its caches."""
    path, samples, *_ = pyramid
    found, labels = stock_batches(path, "simple", cache=cache, field="image_24", batch=100)
    assert labels[:, 0].tolist() == list(range(700))
    assert all(found[k].tobytes() == images[2].data for k, (images, _) in enumerate(samples))
