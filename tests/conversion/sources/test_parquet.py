"""Parquet and Arrow files with Hugging Face's metadata, written by pyarrow, against pyarrow's own reading."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion.encode import ReadError
from conversion.sources import open_source
from ffcv_ops.errors import UserError

NAMES = ["tench, Tinca tinca", "goldfish", "great\nwhite"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def write(path, images, labels, *, features=FEATURES, rows=2, **columns):
    """images: [(bytes, path)]; rows: of a row group."""
    path.parent.mkdir(exist_ok=True, parents=True)
    image = pa.array([{"bytes": content, "path": name} for content, name in images], IMAGE)
    table = pa.table({"image": image, "label": pa.array(labels, pa.int64()), **columns})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=rows)
    else:
        pq.write_table(table, path, row_group_size=rows)


@pytest.fixture
def folder(tmp_path, jpeg):
    """data/train-... in two files of row groups of two, validation, and a test split without labels."""
    data = tmp_path / "data"
    write(data / "train-00000-of-00002.parquet", [(jpeg(k), f"n_{k}.JPEG") for k in range(5)], [2, 0, 1, 1, 0])
    write(data / "train-00001-of-00002.parquet", [(jpeg(k), None) for k in range(5, 8)], [2, 2, 1])
    write(data / "validation-00000-of-00001.parquet", [(jpeg(8), "../a\nb.JPEG")], [1])
    write(data / "test-00000-of-00001.parquet", [(jpeg(9), "t.JPEG")] * 2, [-1, -1])
    return tmp_path


def test_same_as_pyarrow(folder):
    source = open_source(str(folder))
    assert source.classes == tuple(NAMES) and list(source.splits) == ["train", "val"]
    for name, split in source.splits.items():
        files = sorted((folder / "data").glob("train*" if name == "train" else "validation*"))
        rows = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
        assert split.labels.tolist() == [row["label"] for row in rows]
        assert list(map(source.read, split.items)) == [row["image"]["bytes"] for row in rows]
    assert list(source.splits["train"].names) == [
        *(f"train-00000-of-00002.parquet/{k}/n_{k}.JPEG" for k in range(5)),
        *(f"train-00001-of-00002.parquet/{k}" for k in range(3)),
    ]
    assert list(source.splits["val"].names) == ["validation-00000-of-00001.parquet/0/../a\\x0ab.JPEG"]


def test_any_order_of_reading(folder):
    source = open_source(str(folder / "data" / "train-*.parquet"))
    items = source.splits["train"].items
    expected = list(map(source.read, items))
    for k in np.random.default_rng(0).permutation(len(items)):
        assert source.read(items[int(k)]) == expected[k]


def save_to_disk(folder, *files, **state):
    """files: (images, labels) of each. What `datasets` 4 writes, but for what nobody reads."""
    names = [f"data-{k:05}-of-{len(files):05}.arrow" for k in range(len(files))]
    for name, (images, labels) in zip(names, files, strict=True):
        write(folder / name, images, labels)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))


def test_save_to_disk(tmp_path, jpeg):
    """A DatasetDict, and a Dataset in it; row by row."""
    train = [([(jpeg(k), f"{k}.jpg") for k in range(5)], [2, 0, 1, 1, 0]), ([(jpeg(5), None)], [2])]
    save_to_disk(tmp_path / "train", *train)
    save_to_disk(tmp_path / "validation", ([(jpeg(6), "6.jpg")], [1]))
    save_to_disk(tmp_path / "test", ([(jpeg(7), "7.jpg")], [-1]))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    source = open_source(str(tmp_path))
    assert source.classes == tuple(NAMES) and source.origin == str(tmp_path) and list(source.splits) == ["train", "val"]
    assert source.splits["train"].labels.tolist() == [2, 0, 1, 1, 0, 2]
    assert list(map(source.read, source.splits["train"].items)) == [jpeg(k) for k in range(6)]
    assert list(map(source.read, source.splits["val"].items)) == [jpeg(6)]
    names = list(source.splits["train"].names)
    assert names[0] == "train/data-00000-of-00002.arrow/0/0.jpg" and names[5] == "train/data-00001-of-00002.arrow/0"
    alone = open_source(str(tmp_path / "train"))
    assert list(alone.splits) == ["all"] and alone.splits["all"].labels.tolist() == [2, 0, 1, 1, 0, 2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "state.json").write_text("{}"), "its .json files are not those of save_to_disk"),
        (
            lambda f: (f / "state.json").write_text('{"_data_files": [], "_indices_files": [1]}'),
            "save its flatten_indi",
        ),
        (lambda f: (f / "data-00000-of-00001.arrow").write_bytes(b"ARROW1 and no more"), "arrow cannot be read: "),
        (lambda f: (f / "data-00000-of-00001.arrow").rename(f / "x.arrow"), "data-00000-of-00001.arrow cannot be read"),
    ],
)
def test_save_to_disk_that_cannot_be_used(tmp_path, jpeg, spoil, message):
    save_to_disk(tmp_path, ([(jpeg(0), None)], [0]))
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_metadata_classes_are_numbers(tmp_path, jpeg):
    write(tmp_path / "a.parquet", [(jpeg(0), None), (jpeg(1), None)], [3, 0], features=None)
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.classes == ("0", "1", "2", "3") and source.splits["train"].labels.tolist() == [3, 0]


def test_which_column(tmp_path, jpeg):
    """CIFAR-100 has fine_label and coarse_label."""
    names = {"label": {"names": ["x", "y"], "_type": "ClassLabel"}, "coarse": {"names": ["u"], "_type": "ClassLabel"}}
    write(tmp_path / "a.parquet", [(jpeg(0), None), (jpeg(1), None)], [1, 0], features=names, coarse=[0, 0])
    assert open_source(str(tmp_path)).classes == ("x", "y")
    assert open_source(str(tmp_path), label="coarse").classes == ("u",)
    with pytest.raises(UserError, match=r"data.label must be a column of class numbers; there is label, coarse"):
        open_source(str(tmp_path), label="clas")


METADATA = "the metadata `huggingface` cannot be used"
NESTED = "[" * 10**5


def named(names):
    return {"label": {"names": names, "_type": "ClassLabel"}}


def test_a_path_that_is_no_text(tmp_path, jpeg):
    image = pa.array([{"bytes": jpeg(0), "path": 7}])
    pq.write_table(pa.table({"image": image, "label": [0]}), tmp_path / "0.parquet")
    assert list(open_source(str(tmp_path)).splits["train"].names) == ["0.parquet/0"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, j: p.write_bytes(p.read_bytes()[:-100]), "0.parquet cannot be read"),
        (lambda p, j: p.write_bytes(b"PAR1" + b"x" * 100), "0.parquet cannot be read"),
        (lambda p, j: p.write_bytes(b""), "0.parquet cannot be read"),
        (lambda p, j: write(p, [(j, None)], [3]), "has the label 3, but names for 3 classes"),
        (lambda p, j: write(p, [(j, None)] * 2, [0, None]), "1 images have no label"),
        (lambda p, j: write(p, [(j, None)] * 2, [0, -1]), "images of its split have the label -1"),
        (lambda p, j: write(p, [(j, None)] * 2, [-1, -1]), "no split has labels"),
        (lambda p, j: write(p, [], []), "no split has labels"),
        (lambda p, j: pq.write_table(pa.table({"image": [b"x"], "label": [0]}), p), "no column of structs"),
        (lambda p, j: write(p, [(j, None)], [0], features=None, other=pa.array([{"bytes": b""}])), "several columns"),
        (lambda p, j: write(p, [(j, None)], [0], features=[1]), METADATA),
        (lambda p, j: write(p, [(j, None)], [0], features=named("tench")), METADATA),
        (lambda p, j: write(p, [(j, None)], [0], features=named([["tench"]])), METADATA),
        (lambda p, j: write(p, [(j, None)], [0], features=named(1e999)), METADATA),
        (
            lambda p, j: pq.write_table(pa.table({"a": [0]}).replace_schema_metadata({"huggingface": NESTED}), p),
            METADATA,
        ),
        (
            lambda p, j: write(p, [(j, None)], [10**8], features=None),
            r"0.parquet/0 has the label 100,000,000, where 999,999",
        ),
        (lambda p, j: pq.write_table(pa.table({"image": [{"bytes": 1}], "label": [0]}), p), "no column of structs"),
        (lambda p, j: pq.write_table(pa.table({"image": [{"bytes": [{"bytes": j}]}], "label": [0]}), p), "no column"),
        (lambda p, j: pq.write_table(pa.table({"image": [[{"bytes": j}]], "label": [0]}), p), "no column of structs"),
        (lambda p, j: pq.write_table(pa.table({"image": [{"bytes": j}], "label": [0.5]}), p), "must be a column of"),
        (lambda p, j: pq.write_table(pa.table([[{"bytes": j}], [0], [1]], ["image", "a", "a"]), p), "of one name"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, jpeg, spoil, message):
    write(tmp_path / "0.parquet", [(jpeg(0), None)] * 3, [0, 1, 2])
    spoil(tmp_path / "0.parquet", jpeg(0))
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_of_two_data_sets(folder, jpeg):
    """The same numbers would mean other classes."""
    other = {"label": {"names": NAMES[::-1], "_type": "ClassLabel"}}
    write(folder / "data" / "validation-00000-of-00001.parquet", [(jpeg(8), None)], [1], features=other)
    with pytest.raises(UserError, match=r"validation-00000-of-00001.parquet has other columns or classes than test-"):
        open_source(str(folder))


def test_damaged_data_name_the_file(tmp_path, jpeg):
    """The footer is whole, a page is not: the image is refused when it is read."""
    write(tmp_path / "0.parquet", [(jpeg(k), None) for k in range(4)], [0, 1, 2, 0], rows=4)
    content = bytearray((tmp_path / "0.parquet").read_bytes())
    content[4:60] = b"\xff" * 56
    (tmp_path / "0.parquet").write_bytes(content)
    source = open_source(str(tmp_path))
    with pytest.raises(UserError, match=r"0.parquet cannot be read"):
        source.read(source.splits["train"].items[0])


def test_a_file_that_changes_under_the_conversion(folder, jpeg):
    """The labels would be those of other images."""
    source = open_source(str(folder))
    path = folder / "data" / "train-00001-of-00002.parquet"
    write(path, [(jpeg(k), None) for k in range(8, 5, -1)], [1, 2, 2])
    assert source.read(source.splits["train"].items[0]) == jpeg(0)
    with pytest.raises(ReadError, match=rf"{path} was written to or replaced since its labels were read"):
        source.read(source.splits["train"].items[5])


def test_an_image_that_is_only_a_path(tmp_path, jpeg):
    write(tmp_path / "0.parquet", [(jpeg(0), "a"), (None, "/etc/passwd")], [0, 1])
    source = open_source(str(tmp_path))
    with pytest.raises(UserError, match="has no bytes here, only a path"):
        source.read(source.splits["train"].items[1])


def test_without_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="Parquet and Arrow files need pyarrow; pip install pyarrow"):
        open_source(str(folder))
