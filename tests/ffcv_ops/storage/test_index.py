"""The index of one file and of shards, against stock FFCV's reader; what does not belong together is refused."""

import json
import os
import sys
import tracemalloc

import numpy as np
import pytest
from ffcv.reader import Reader
from xxhash import xxh64_hexdigest

from config.recipe import BASE_RECIPE, load_recipe
from conversion import beton
from ffcv_ops.errors import UserError
from ffcv_ops.storage import index, sources
from ffcv_ops.storage.index import describe, open_index
from ffcv_ops.storage.info import exists
from training import loading as loader

COUNTS = (40, 1, 35, 20)


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        describe(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def change_json(path, **changes):
    said = path.with_suffix(".json")
    said.write_text(json.dumps(json.loads(said.read_text()) | changes))


@pytest.fixture
def shards(tmp_path, encoded, write_shards):
    """The pattern and the files of four shards."""
    pattern = write_shards(tmp_path, encoded, COUNTS)
    return pattern, sorted(tmp_path.glob("*.beton"))


def test_one_file_is_what_stock_ffcv_reads(jpg_beton):
    known, stock = open_index(jpg_beton), Reader(str(jpg_beton))
    by_place = np.argsort(stock.alloc_table["ptr"])
    np.testing.assert_array_equal(known.metadata, stock.metadata)
    np.testing.assert_array_equal(known.places, stock.alloc_table["ptr"][by_place])
    np.testing.assert_array_equal(known.sizes, stock.alloc_table["size"][by_place])
    assert (known.field_names, known.page_size) == (stock.field_names, stock.page_size)
    assert known.checksums is None


@pytest.mark.parametrize("fixture", ["encoded", "encoded_levels"])
def test_shards_are_one_row(request, tmp_path, write_shards, write_beton, fixture):
    """Every record of the shards is the whole file's, and its place the right one of the right shard."""
    samples = request.getfixturevalue(fixture)
    pattern = write_shards(tmp_path, samples, COUNTS)
    known, whole = open_index(pattern), open_index(write_beton(tmp_path / "whole.beton", samples))
    assert describe(pattern)._replace(path=None) == describe(tmp_path / "whole.beton")._replace(path=None)
    np.testing.assert_array_equal(index.column(known, "label"), index.column(whole, "label"))
    for level, name in enumerate(index.levels_of(known)):
        image, same = index.column(known, name), index.column(whole, name)
        np.testing.assert_array_equal(image[["mode", "width", "height"]], same[["mode", "width", "height"]])
        for number, ((*images,), _) in enumerate(samples):
            place = int(image["data_ptr"][number])
            file = [file for file in known.files if file.start <= place][-1]
            assert file.path.read_bytes()[place - file.start :].startswith(images[level].data)
    assert (np.diff(known.places.astype(np.int64)) > 0).all()
    assert set(known.checksums) == set(whole.checksums)
    assert all(file.start % known.page_size == 0 for file in known.files)


def test_names_go_on_from_shard_to_shard(shards):
    known = open_index(shards[0])
    names = list(sources.source_names(shards[0]))
    assert len(names) == 96
    assert names[0] == "x_train-00000-of-00004/0.jpg"
    for sample in (0, 39, 40, 41, 95):
        assert sources.source_of(known, sample) == names[sample]
    shards[1][0].with_suffix(".files.txt").unlink()
    assert sources.source_of(known, 3) == ""
    assert sources.source_of(known, 40) == names[40]


def test_no_file_matches(tmp_path):
    refused(tmp_path / "x_*.beton", "no such file")
    assert not exists(tmp_path / "x_*.beton")


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_missing_shard(shards, missing):
    shards[1][missing].unlink()
    refused(shards[0], f"shard {missing} of 4 is missing")


def test_a_foreign_file_among_shards(shards, jpg_beton):
    (shards[1][0].parent / "x_train-foreign.beton").write_bytes(jpg_beton.read_bytes())
    refused(shards[0], "x_train-foreign.beton", "no shard")


@pytest.mark.parametrize(
    "changes, words",
    [({"classes": list("abcdf")}, "other classes"), ({"split": "val"}, "other split"), ({"shards": 5}, "rename it"),
     ({"shard": 1}, "rename it"), ({"source": "elsewhere"}, "other source"),
     ({"conversion": "0123456789abcdef"}, "other conversion")],
)  # fmt: skip
def test_a_shard_of_another_data_set(shards, changes, words):
    change_json(shards[1][2], **changes)
    refused(shards[0], str(shards[1][2]), words)


def test_shards_of_two_conversions(tmp_path, encoded, write_shards):
    write_shards(tmp_path, encoded, (48, 48))
    refused(write_shards(tmp_path, encoded, (30, 30, 36)), "one of 3 shards", "of 2")


def test_shards_with_other_fields_or_pages(tmp_path, encoded, encoded_levels, write_shards, write_beton):
    pattern = write_shards(tmp_path, encoded, (48, 48))
    last = tmp_path / "x_train-00001-of-00002.beton"
    write_beton(last, encoded_levels[48:], shard=1, shards=2)
    refused(pattern, "other fields")
    write_beton(last, encoded[48:], page_size=2**22, shard=1, shards=2)
    refused(pattern, "other page size")


def test_shards_without_descriptions_go_by_their_names(shards):
    for path in shards[1]:
        path.with_suffix(".json").unlink()
    assert describe(shards[0]).samples == 96
    shards[1][1].rename(shards[1][1].with_stem("x_train-00007-of-00004"))
    refused(shards[0], "shard 1 of 4 is missing")


def test_a_damaged_shard_is_named(shards):
    path = shards[1][2]
    path.write_bytes(path.read_bytes()[:-24])
    refused(shards[0], str(path), "truncated")


# --- what lies beside a file ---------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path, encoded, write_beton):
    return write_beton(tmp_path / "x.beton", encoded)


def test_any_change_of_the_index_is_seen(whole):
    """Also those that leave an index that makes sense: labels, widths, two entries that change places."""
    content, reader = whole.read_bytes(), Reader(str(whole))
    start, size = 24 + 2 * 1041, reader.metadata.dtype.itemsize
    table = int(reader.header["alloc_table_ptr"])
    for place in (4, 30, start + 1, start + 50 * size + 16, table + 8, len(content) - 8):
        changed = bytearray(content)
        changed[place] ^= 1
        whole.write_bytes(changed)
        refused(whole)
    one, two = content[start : start + size], content[start + size : start + 2 * size]
    whole.write_bytes(content[:start] + two + one + content[start + 2 * size :])
    refused(whole, "not those that were written")
    whole.write_bytes(content)
    assert describe(whole).samples == 96


def test_another_length(whole):
    change_json(whole, bytes=1)
    refused(whole, "truncated or another file")


def test_checksums_must_be_there_and_the_right_ones(whole):
    sums = whole.with_suffix(".xxh64")
    content = sums.read_bytes()
    for other in (content[:-8], content + bytes(8), bytes([content[0] ^ 1]) + content[1:]):
        sums.write_bytes(other)
        refused(whole, "not the checksums of")
    sums.unlink()
    refused(whole, "no such file", "copy it too")
    whole.with_suffix(".json").unlink()
    assert describe(whole).samples == 96  # a file of others


def test_a_link_has_what_lies_beside_its_target(tmp_path, whole):
    """Also over two links; what lies beside the link itself goes before."""
    (tmp_path / "links").mkdir()
    first, second = tmp_path / "links" / "first.beton", tmp_path / "links" / "second.beton"
    first.symlink_to(whole)
    second.symlink_to(first.name)
    for link in (first, second):
        assert describe(link)._replace(path=whole) == describe(whole)
        assert describe(link).class_names == tuple("abcde") and describe(link).checksums
        assert sources.source_of(open_index(link), 7) == "x/7.jpg"
    whole.with_suffix(".xxh64").rename(second.with_suffix(".xxh64"))
    refused(first, f"{whole.with_suffix('.json')} says that it belongs to it; copy it too")
    assert describe(second).checksums
    second.with_suffix(".json").symlink_to("gone")
    refused(second, f"{second.with_suffix('.json')} is a link to gone, which is not there")


ODD = {
    "pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero"),
    "holes": lambda path: (path.touch(), os.truncate(path, 2**40)), "link": lambda path: path.symlink_to("gone"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("end", [".beton", ".json", ".xxh64", ".files.txt"])
def test_what_is_no_file_is_named(whole, kind, end):
    """None of them is waited for, or read to its end."""
    odd = whole.with_suffix(end)
    odd.unlink()
    ODD[kind](odd)
    if (kind, end) == ("holes", ".files.txt"):  # text of any length is taken for names, but not read to its end
        assert sources.source_of(open_index(whole), 1).startswith("'\\x00")
        return
    with pytest.raises(UserError) as refusal:
        sources.source_of(open_index(whole), 7)
    assert str(odd) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_label_out_of_all_proportion(tmp_path, encoded, write_beton):
    path = write_beton(tmp_path / "x.beton", [*encoded[:3], (encoded[3][0], 10**8)])
    refused(path, "sample 3 x/3.jpg has the label 100,000,000; 1,000,000 classes are the most")


def test_empty_classes_are_counted(tmp_path, encoded, write_beton):
    path = write_beton(tmp_path / "x.beton", [(image, 6) for image, _ in encoded[:3]])
    assert (describe(path).classes, describe(path).empty) == (7, 6)


PAGE_SIZE, IMAGE_BYTES, CLASSES = 2**23, 45_000, 19_167


def write_hole(path, samples):
    """A .beton of so many JPEGs of 45 kB, whose bytes are a hole, with x.json and x.xxh64 beside it."""
    table = np.zeros(samples, beton.sample_type())
    number, a_page = np.arange(samples), PAGE_SIZE // IMAGE_BYTES
    first = -(-(beton.metadata_start() + table.nbytes) // PAGE_SIZE) * PAGE_SIZE
    table["image"]["width"], table["image"]["height"] = 500, 375
    table["image"]["data_ptr"] = first + number // a_page * PAGE_SIZE + number % a_page * IMAGE_BYTES
    table["label"] = number * CLASSES // samples
    allocations = np.zeros(samples, beton.ALLOCATION)
    allocations["sample_id"], allocations["ptr"], allocations["size"] = number, table["image"]["data_ptr"], IMAGE_BYTES
    data_end = int(allocations["ptr"][-1]) + IMAGE_BYTES
    with open(path, "wb") as file:
        file.write(np.array((beton.VERSION, 2, PAGE_SIZE, samples, data_end), beton.HEADER).tobytes())
        fields = np.zeros(2, beton.FIELD)
        fields["type_id"] = beton.IMAGE_FIELD, beton.INT_FIELD
        fields["name"][:, :5] = list(b"image"), list(b"label")
        file.write(fields.tobytes())
        table.tofile(file)
        file.seek(data_end)
        allocations.tofile(file)
    sums = np.arange(samples, dtype=beton.CHECKSUM).tobytes()
    said = {"format": 2, "bytes": path.stat().st_size, "classes": [f"n{k:08}" for k in range(CLASSES)]}
    path.with_suffix(".xxh64").write_bytes(sums)
    said |= {"index_xxh64": beton.index_checksum(path), "checksums_xxh64": xxh64_hexdigest(sums)}
    path.with_suffix(".json").write_text(json.dumps(said))


@pytest.mark.timeout(120)
def test_no_object_and_few_bytes_per_sample(tmp_path):
    """Checking, loader and first order of 200,000 samples: as 14 million would (docs/performance.md)."""
    samples, stage = 200_000, load_recipe(BASE_RECIPE).stages[0]
    write_hole(tmp_path / "hole.beton", samples)
    assert Reader(str(tmp_path / "hole.beton")).num_samples == samples

    def start():
        data = describe(tmp_path / "hole.beton")
        batches = loader.train_loader(
            data.path, data.samples, stage, seed=0, placement=loader.Placement(world=64, workers=1)
        )
        return batches, batches.sample_ids(0)

    start()
    tracemalloc.start()
    try:
        objects = sys.getallocatedblocks()
        batches, order = start()
        objects = sys.getallocatedblocks() - objects
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(order) == len(batches) * 32
    assert objects < 40_000  # of which the names of 19,167 classes
    assert kept < 50 * samples + 5e6
    assert peak < 140 * samples + 10e6
