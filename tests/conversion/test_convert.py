"""One split into a file: repeatable bytes, the lists beside it, and what remains when something goes wrong."""

import errno
import functools
import io
import json
import os
import re

import numpy as np
import PIL
import pytest
import xxhash
from ffcv.reader import Reader
from PIL import Image

from conversion import beton
from conversion import convert as convert_module
from conversion.convert import WriteOptions, convert
from conversion.encode import ImageConfig
from conversion.sources import Source, Split, image_folder, read_file
from ffcv_ops.errors import UserError

ENCODING = {"max_side": 40, "min_side": None, "mode": "jpg", "quality": 90}
SETTINGS = {**ENCODING, "levels": None, "passthrough": True}
OPTIONS = {"on_error": "stop", "workers": 1, "page_size": beton.MIN_PAGE_SIZE}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """60 pictures of different sizes and costs in 3 classes."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(60):
        folder = root / "train" / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        side = 500 if number % 7 == 0 else 20 + number
        Image.fromarray(rng.integers(0, 256, (side, 30 + number, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return image_folder(str(root))


def run(source, path, **options):
    return convert(source, "train", path, ImageConfig(**ENCODING), WriteOptions(**{**OPTIONS, **options}))


@pytest.fixture(scope="module")
def converted(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "x_train.beton"
    return path, run(pictures, path)


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_same_bytes_for_any_number_of_workers(pictures, converted, tmp_path):
    for workers in (1, 2):
        run(pictures, tmp_path / "x_train.beton", workers=workers)
        assert files(tmp_path) == files(converted[0].parent)


def test_samples(pictures, converted):
    split = pictures.splits["train"]
    samples = list(beton.read(converted[0]))
    assert [label for _, label in samples] == split.labels.tolist()
    for (rgb, _), name in zip(samples, split.names, strict=True):
        width, height = Image.open(os.path.join(pictures.origin, name)).size
        scale = min(1, 40 / max(width, height))
        assert rgb.shape == (round(height * scale), round(width * scale), 3)


def jpegs(content):
    """Everything between a JPEG's first and last marker."""
    return re.findall(rb"\xff\xd8\xff\xe0.*?\xff\xd9", content, re.DOTALL)


def test_sidecar(pictures, converted):
    path, line = converted
    sidecar = json.loads(path.with_suffix(".json").read_text())
    content = path.read_bytes()
    stock = Reader(str(path))
    index = content[: 24 + 2 * 1041 + 60 * 24] + content[int(stock.header["alloc_table_ptr"]) :]
    stored = [content[start : start + size] for _, start, size in stock.alloc_table.tolist()]
    checksums = b"".join(xxhash.xxh64_intdigest(data).to_bytes(8, "little") for data in stored)
    assert path.with_suffix(".xxh64").read_bytes() == checksums
    assert all(re.fullmatch("[0-9a-f]{16}", sidecar.pop(name)) for name in ("conversion", "pair"))
    assert sidecar == {
        "made": {},
        "format": 3,
        "beton": "x_train.beton",
        "shard": 0,
        "shards": 1,
        "bytes": len(content),
        "stored": {"image": {"images": 60, "bytes": sum(map(len, jpegs(content)))}},
        "index_xxh64": xxhash.xxh64_hexdigest(index),
        "checksums_xxh64": xxhash.xxh64_hexdigest(checksums),
        "split": "train",
        "samples": 60,
        "skipped": 0,
        "left_out": {},
        "classes": ["class 0", "class 1", "class 2"],
        "samples_per_class": [20, 20, 20],
        "smallest_and_largest": {"height": [21, 40], "width": [2, 40]},
        "source": pictures.origin,
        "settings": {"on_error": "stop", "page_size": beton.MIN_PAGE_SIZE, **SETTINGS},
        "layout": {"ffcv": 2, "fields": ["image", "label"]},
        "pillow": PIL.__version__,
    }
    assert (path.parent / "x_train.files.txt").read_text().splitlines() == list(pictures.splits["train"].names)
    assert sorted(files(path.parent)) == ["x_train.beton", "x_train.files.txt", "x_train.json", "x_train.xxh64"]
    assert re.fullmatch(rf"{path}: 60 images of 3 classes, {len(content) / 1e6:.1f} MB, [\d,]+ images/s", line)


def test_levels(pictures, converted, tmp_path):
    """The same bytes for any number of workers; the full level's are those of the file without levels."""
    image = ImageConfig(**ENCODING, levels=(40, 30, 20))
    for workers in (1, 2):
        path = tmp_path / str(workers) / "x_train.beton"
        convert(pictures, "train", path, image, WriteOptions(**{**OPTIONS, "workers": workers}))
    assert files(tmp_path / "1") == files(tmp_path / "2")

    content = path.read_bytes()
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["layout"]["fields"] == ["image", "image_30", "image_20", "label"]
    assert sidecar["settings"]["levels"] == [40, 30, 20]
    assert sum(taken["bytes"] for taken in sidecar["stored"].values()) == sum(map(len, jpegs(content)))
    assert sidecar["stored"]["image"] == json.loads(converted[0].with_suffix(".json").read_text())["stored"]["image"]
    table, sizes = beton._table_and_sizes(path)
    single, single_sizes = beton._table_and_sizes(converted[0])
    alone = converted[0].read_bytes()
    for place, size, at in zip(table["image"]["data_ptr"], sizes["image"], single["image"]["data_ptr"], strict=True):
        assert content[place : place + size] == alone[at : at + size]
    assert np.array_equal(sizes["image"], single_sizes["image"])


@pytest.fixture
def damaged(pictures, tmp_path):
    """The pictures with four that cannot be stored, in the order of the split: by kind, 1 of each."""
    root = tmp_path / "damaged"
    folder = root / "train" / "class"
    folder.mkdir(parents=True)
    good = os.path.join(pictures.origin, pictures.splits["train"].names[3])
    for name in ("a.png", "c.png", "e.png", "g.png", "i.png"):
        os.link(good, folder / name)
    (folder / "b.jpg").write_bytes(b"")
    (folder / "d.jpg").write_text("I am text")
    (folder / "f.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "h.jpg").symlink_to("nowhere.jpg")
    return image_folder(str(root))


def test_stop_names_the_first_bad_file(damaged, tmp_path):
    out = tmp_path / "out"
    bad = os.path.join(damaged.origin, "train/class/b.jpg")
    with pytest.raises(UserError, match=f"^{re.escape(bad)}: is not an image .known formats: .*; ") as caught:
        run(damaged, out / "x_train.beton", workers=2)
    assert "\n" not in str(caught.value)
    assert files(out) == {}


def test_skip_lists_what_was_left_out(damaged, tmp_path):
    out = tmp_path / "out"
    line = run(damaged, out / "x_train.beton", on_error="skip")
    rows = [row.split("\t") for row in (out / "x_train.skipped.txt").read_text().splitlines()]
    assert [name for name, _ in rows] == [f"train/class/{name}" for name in ("b.jpg", "d.jpg", "f.png", "h.jpg")]
    assert [reason.split(":")[0] for _, reason in rows] == ["is not an image (known formats"] * 2 + [
        "cannot be decoded",
        "is a link to nowhere.jpg, which is not there",
    ]
    kept = (out / "x_train.files.txt").read_text().splitlines()
    assert kept == [f"train/class/{name}.png" for name in "acegi"]
    sidecar = json.loads((out / "x_train.json").read_text())
    assert (sidecar["samples"], sidecar["skipped"], sidecar["samples_per_class"]) == (5, 4, [5])
    assert len(list(beton.read(out / "x_train.beton"))) == 5
    assert line.endswith(f"images/s; 4 left out, see {out / 'x_train.skipped.txt'}")


def test_the_list_of_an_earlier_run_does_not_stay(pictures, damaged, tmp_path):
    out = tmp_path / "out"
    run(damaged, out / "x_train.beton", on_error="skip")
    run(pictures, out / "x_train.beton", on_error="skip")
    assert sorted(files(out)) == ["x_train.beton", "x_train.files.txt", "x_train.json", "x_train.xxh64"]


def test_nothing_to_store(damaged, tmp_path):
    split = damaged.splits["train"]
    only_bad = Split(*[[part[k] for k in (1, 3)] for part in split[:2]], split.labels[:2])
    with pytest.raises(UserError, match=r"none of its 2 images of train can be stored$"):
        run(damaged._replace(splits={"train": only_bad}), tmp_path / "out" / "x_train.beton", on_error="skip")
    assert files(tmp_path / "out") == {}


def test_larger_than_a_page(pictures, tmp_path):
    """A picture of 1000 x 1000 raw pixels does not fit a page of 2 MiB."""
    folder = tmp_path / "in" / "train" / "class"
    folder.mkdir(parents=True)
    Image.new("RGB", (1000, 1000)).save(folder / "a.png")
    source = image_folder(str(tmp_path / "in"))
    image = ImageConfig(max_side=None, mode="raw")
    with pytest.raises(UserError, match=r"a\.png: takes 3,000,000 bytes, .*page.* set image\.max_side lower"):
        convert(source, "train", tmp_path / "x_train.beton", image, WriteOptions(**OPTIONS))


def test_a_jpeg_whose_metadata_are_larger_than_a_page(tmp_path):
    """What the message names helps: encoded again, it fits."""
    folder = tmp_path / "in" / "train" / "class"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG")
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    (folder / "a.jpg").write_bytes(buffer.getvalue()[:2] + 40 * comment + buffer.getvalue()[2:])
    source = image_folder(str(tmp_path / "in"))
    with pytest.raises(UserError, match=r"a\.jpg: takes 2,6\d\d,\d\d\d bytes, .* or image\.passthrough=false"):
        run(source, tmp_path / "x_train.beton")
    image = ImageConfig(**ENCODING, passthrough=False)
    convert(source, "train", tmp_path / "x_train.beton", image, WriteOptions(**OPTIONS))


def test_a_shard_without_an_image_that_can_be_stored(damaged, tmp_path):
    """The message tells the way out: fewer shards."""
    path = tmp_path / "out" / "x_train.beton"
    line = r"x_train-00001-of-00009\.beton is not written: .* set data\.shards lower$"
    with pytest.raises(UserError, match=line) as caught:
        run(damaged, path, on_error="skip", shards=9)
    assert f"; remove {tmp_path}/out/x_train.unfinished and its shards" in str(caught.value)
    for file in (path.with_suffix(".unfinished"), *path.parent.glob("*.beton")):
        file.unlink()
    run(damaged, path, on_error="skip", shards=4)


@pytest.fixture
def earlier(tmp_path, converted):
    """A folder with the good files of an earlier run and the remains of a killed one."""
    for name, content in files(converted[0].parent).items():
        (tmp_path / name).write_bytes(content)
    before = files(tmp_path)
    (tmp_path / "x_train.beton.partial").write_bytes(b"remains" * 10**6)
    (tmp_path / "x_train.skipped.txt.partial").write_text("remains")
    return tmp_path / "x_train.beton", before


def finished(folder):
    """The files under their final names."""
    return {name: content for name, content in files(folder).items() if not name.endswith((".partial", ".unfinished"))}


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(pictures, earlier, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, before = earlier
    line = r"x_train\.beton cannot be written: No space left on device$"
    with monkeypatch.context() as patched, pytest.raises(UserError, match=line):
        patched.setattr(os, call, full)
        run(pictures, path)
    assert finished(path.parent) == before
    run(pictures, path)
    assert files(path.parent) == before


@pytest.mark.parametrize(
    "module, call, place",
    [
        (os, "fdatasync", beton.MIN_PAGE_SIZE + 5000),
        (convert_module, "check_index", 3),
        (convert_module, "check_index", 2200),
    ],
)
def test_a_failed_check_leaves_the_earlier_file(pictures, earlier, monkeypatch, module, call, place):
    """The disk loses a part of the images before they are read back, or of the header or the samples' metadata."""
    path, before = earlier
    original = getattr(module, call)

    def bit_rot(*args, **options):
        if call == "fdatasync":
            original(*args)
        with open(f"{path}.partial", "r+b") as file:
            file.seek(place)
            file.write(b"rot")
            file.flush()
            os.fsync(file.fileno())
        if call == "check_index":
            original(*args, **options)

    monkeypatch.setattr(module, call, bit_rot)
    with pytest.raises(UserError, match="did not read back"):
        run(pictures, path)
    assert files(path.parent) == before


def test_remains_of_a_killed_run_are_overwritten(pictures, earlier):
    path, before = earlier
    run(pictures, path)
    assert files(path.parent) == before


def test_a_worker_that_dies_leaves_the_earlier_file(earlier):
    path, before = earlier
    items = [7] * 50
    split = Split(items, [str(item) for item in items], np.zeros(50, int))
    source = Source("nowhere", ("a",), {"train": split}, read=os._exit)
    with pytest.raises(UserError, match="a worker process died"):
        run(source, path)
    assert files(path.parent) == before


def test_names_that_are_no_utf_8_keep_their_bytes(pictures, tmp_path):
    folder = os.fsencode(tmp_path / "in" / "train" / "class")
    os.makedirs(folder)
    os.link(os.path.join(pictures.origin, pictures.splits["train"].names[0]), os.path.join(folder, b"caf\xe9.png"))
    run(image_folder(str(tmp_path / "in")), tmp_path / "x_train.beton")
    assert (tmp_path / "x_train.files.txt").read_bytes() == b"train/class/caf\xe9.png\n"


def unreadable(item, root, bad, error):
    if item in bad:
        raise OSError(error, os.strerror(error))
    return read_file(item, root)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOENT, errno.ESTALE, errno.EACCES])
def test_a_source_that_goes_away_stops_even_with_skip(pictures, earlier, error):
    """An image that cannot be read is no bad image; what is there stays."""
    path, before = earlier
    bad = set(pictures.splits["train"].items[20:])
    read = functools.partial(unreadable, root=pictures.origin, bad=bad, error=error)
    first = re.escape(pictures.splits["train"].names[20])
    line = f"{first}: cannot be read: {re.escape(os.strerror(error))}; check the source's disk or network"
    with pytest.raises(UserError, match=line):
        run(pictures._replace(read=read), path, on_error="skip", max_skipped=1.0)
    assert finished(path.parent) == before


def test_a_source_that_gives_other_bytes(pictures, earlier):
    """Images that cannot be decoded: some may be skipped, no more than the share that is set."""
    path, before = earlier
    broken = set(pictures.splits["train"].items[:15])
    source = pictures._replace(read=functools.partial(not_all, root=pictures.origin, broken=broken))
    line = r"11 of 60 images of train cannot be stored, the last one is .*; data\.max_skipped=0\.01 is the share"
    with pytest.raises(UserError, match=line):
        run(source, path, on_error="skip")
    assert finished(path.parent) == before
    run(source, path, on_error="skip", max_skipped=0.25)
    assert json.loads(path.with_suffix(".json").read_text())["skipped"] == 15


def not_all(item, root, broken):
    return b"no image" if item in broken else read_file(item, root)
