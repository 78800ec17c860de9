"""What is taken for an image, what for a class, and that nothing is left out without a word."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conversion import formats
from conversion.sources import image_folder, open_source
from ffcv_ops.errors import UserError

SAVED = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "GIF": "gif", "PPM": "ppm", "TIFF": "tif", "WEBP": "webp",
         "JPEG2000": "jp2", "AVIF": "avif"}  # fmt: skip


def stored(fmt):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, fmt)
    return stream.getvalue()


def written(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("fmt", formats.FORMATS)
def test_formats_are_known_by_content(fmt):
    assert formats.is_image(stored(fmt)[: formats.HEAD])
    assert SAVED.keys() == set(formats.FORMATS)


@pytest.mark.parametrize(
    "head", [b"", b"BUT", b"text", b"%!PS-Adobe-3.0 EPSF-3.0", b"PK\3\4", b"\0\5\x16\7", b"RIFF1234WAVE"]
)
def test_other_content_is_no_image(head):
    assert not formats.is_image(head)


def test_a_folder_by_content(tmp_path, jpeg, capsys):
    """Endings that torchvision does not know, and none; what other programs leave beside images is no class."""
    images = ["a.jfif", "b.avif", "c.jpe", "d", "e.JPG", "f.jpeg2"]
    taken = {f"train/cat/{name}": stored("AVIF") if name == "b.avif" else jpeg(k) for k, name in enumerate(images)}
    left = {
        "train/cat/notes.txt": b"a cat",
        "train/cat/._e.JPG": b"\0\5\x16\7 macOS's metadata",
        "train/cat/.DS_Store": b"\0\0\0\1Bud1",
        "train/cat/@eaDir/e.JPG": jpeg(9),
        "train/.ipynb_checkpoints/e.JPG": jpeg(9),
        "train/__MACOSX/._cat": b"",
        "train/stray.jpg": jpeg(9),
    }
    written(tmp_path, taken | left)
    source = image_folder(str(tmp_path))
    assert source.classes == ("cat",) and list(source.splits["train"].names) == sorted(taken)
    assert source.splits["train"].left_out == {
        "not an image by its content": 3,
        "folder of another program": 3,
        "in no class folder": 1,
    }
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "3 not an image by its content (" in said
        and "1 in no class folder (stray.jpg)" in said
    )


@pytest.mark.timeout(20)
def test_pipes_and_line_breaks(tmp_path, jpeg):
    """A pipe is never waited for; a name that would be two lines of a list is refused."""
    written(tmp_path, {"train/cat/a.jpg": jpeg(0)})
    os.mkfifo(tmp_path / "train/cat/pipe")
    assert image_folder(str(tmp_path)).splits["train"].left_out == {"not an image by its content": 1}
    os.mkfifo(tmp_path / "train/cat/pipe.jpg")
    source = image_folder(str(tmp_path))
    with pytest.raises(UserError, match="is a named pipe, not a file"):
        source.read(source.splits["train"].items[1])
    for name in ("b\r.jpg", "b\x85.jpg", "b\u2028.jpg"):
        written(tmp_path, {f"train/cat/{name}": jpeg(0)})
        with pytest.raises(UserError, match="has a line break in its name; rename it") as caught:
            image_folder(str(tmp_path))
        assert str(caught.value).isprintable()
        (tmp_path / "train/cat" / name).unlink()


@pytest.mark.parametrize("place", ["val", "1.tar", "0.tar"])
def test_a_link_to_nowhere_is_not_left_out(tmp_path, jpeg, packed, place):
    if place == "val":
        written(tmp_path, {"train/cat/a.jpg": jpeg(0)})
    else:
        shards(tmp_path, packed, {name: {"a.jpg": jpeg(0), "a.cls": b"0"} for name in {"0.tar", "1.tar"} - {place}})
    (tmp_path / place).symlink_to("gone")
    with pytest.raises(UserError, match=f"{place} is (a link to gone, which is not there|not a folder, and no link)"):
        open_source(str(tmp_path))


def test_classes_that_are_numbers(tmp_path, jpeg):
    written(tmp_path, {f"train/{k}/a.jpg": jpeg(0) for k in range(12)})
    with pytest.raises(
        UserError, match=r"label 2 would be 10 by the order of the names, 2 by value; data.classes=numeric"
    ):
        image_folder(str(tmp_path))
    names = list(image_folder(str(tmp_path), "sorted").splits["train"].names)
    for classes, number_of in (("numeric", int), ("sorted", sorted(map(str, range(12))).index)):
        labels = image_folder(str(tmp_path), classes).splits["train"].labels.tolist()
        assert labels == [number_of(name.split("/")[1]) for name in names]
    for k in (3, 7):
        (tmp_path / f"train/{k}/a.jpg").unlink()
        (tmp_path / f"train/{k}").rmdir()
    source = open_source(str(tmp_path), classes="numeric")
    assert source.classes == tuple(map(str, range(12))) and set(range(12)) - set(source.splits["train"].labels) == {
        3,
        7,
    }
    written(tmp_path, {"train/cat/a.jpg": jpeg(0)})
    with pytest.raises(UserError, match="needs classes called by numbers"):
        image_folder(str(tmp_path), "numeric")


def test_padded_numbers_have_one_order(tmp_path, jpeg):
    written(tmp_path, {f"train/{k:02}/a.jpg": jpeg(0) for k in range(12)})
    assert image_folder(str(tmp_path)).splits["train"].labels.tolist() == list(range(12))


def shards(folder, packed, files):
    written(folder, {name: packed(members) for name, members in files.items()})
    return folder


def test_class_tars_by_content(tmp_path, packed, jpeg, capsys):
    members = {"a.jfif": jpeg(0), "b": jpeg(1), "c.JPEG": jpeg(2), "d.txt": b"x", "__MACOSX/._c.JPEG": b"x"}
    source = open_source(str(shards(tmp_path, packed, {"cat.tar": members, "dog.tar": members})))
    assert [name.rpartition("/")[2] for name in source.splits["train"].names] == ["a.jfif", "b", "c.JPEG"] * 2
    assert source.splits["train"].left_out == {"not an image by its content": 2, "in __MACOSX": 2}
    said = capsys.readouterr().err
    assert "left out: 2 not an image by its content (d.txt)" in said
    assert "is read as class tars: train 6 images, 2 classes (cat, dog)" in said


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("0.tar", "1.tar"), r"0, 1\.tar hold images without labels; where each is a class, set data.classes"),
        (("train-0.tar", "val-0.tar"), "called as shards of a split, but hold images without labels"),
    ],
)
def test_tars_that_are_shards_or_classes(tmp_path, packed, jpeg, files, message):
    """Neither is guessed: a shard must not become a class."""
    shards(tmp_path, packed, {file: {"a.jpg": jpeg(0), "b.jpg": jpeg(1)} for file in files})
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path))


def test_tars_called_by_numbers_may_be_classes(tmp_path, packed, jpeg):
    shards(tmp_path, packed, {file: {"a.jpg": jpeg(0)} for file in ("0.tar", "1.tar")})
    assert open_source(str(tmp_path), classes="numeric").classes == ("0", "1")


KEYS = {
    "dots": ["n1.001", "n1.002", "n1.003", "v2.0 final"],
    "one dot each": ["a.1", "b.1", "c.2", "d.2"],
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("ending", ["jpg", "JPEG", "jfif", "img"])
def test_keys_with_dots(tmp_path, packed, jpeg, keys, ending):
    members = {}
    for k, key in enumerate(keys):
        members |= {f"{key}.{ending}": jpeg(k), f"{key}.cls": str(k % 2).encode()}
    split = open_source(str(shards(tmp_path, packed, {"x.tar": members}))).splits["train"]
    assert list(split.names) == [f"x.tar/{key}.{ending}" for key in keys]
    assert split.labels.tolist() == [0, 1, 0, 1] and split.left_out == {}


def test_members_that_are_not_the_sample(tmp_path, packed, jpeg, capsys):
    """A mask, a caption, macOS's metadata, a group without an image: the first and the last two are counted."""
    members = {
        "a.jpg": jpeg(0), "a.seg.png": jpeg(1), "a.txt": b"a cat", "a.cls": b"0",
        "._b.jpg": b"\0\5\x16\7", "b.jpg": jpeg(2), "._b.cls": b"\0\5\x16\7", "b.cls": b"1",
        "readme.txt": b"hello",
    }  # fmt: skip
    split = open_source(str(shards(tmp_path, packed, {"x.tar": members}))).splits["train"]
    assert split.labels.tolist() == [0, 1]
    expected = {"further image of a sample": 1, "macOS's metadata": 2, "in a sample without an image": 1}
    assert split.left_out == expected
    assert "2 macOS's metadata (._b.jpg)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a.left.jpg", "a.right.jpg", "a.cls"], "a.left has no .cls"),
        (["a.jpg", "b.jpg", "a.CLS", "b.CLS"], "a has no .cls .* the members of a sample must follow each other"),
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], "a has no .cls .* must follow each other"),
        (["a.jpg", "a.txt", "b.jpg", "b.txt"], r"data.label=\.txt takes the number in that member"),
    ],
)
def test_labels_are_not_guessed_from_absence(tmp_path, packed, jpeg, members, message):
    content = {name: jpeg(0) if name.endswith("jpg") else b"1" for name in members}
    with pytest.raises(UserError, match=message):
        open_source(str(shards(tmp_path, packed, {"x.tar": content})))


def test_labels_in_another_member(tmp_path, packed, jpeg):
    members = {"a.jpg": jpeg(0), "a.TXT": b"3\n", "b.jpg": jpeg(1), "b.TXT": b"1"}
    source = open_source(str(shards(tmp_path, packed, {"x.tar": members})), label=".txt")
    assert source.splits["train"].labels.tolist() == [3, 1]


def test_a_source_that_is_visibly_incomplete(tmp_path, packed, jpeg):
    members = {"a.jpg": jpeg(0), "a.cls": b"0"}
    files = [f"x-train-{k:05}-of-00004.tar" for k in (0, 1, 3)]
    shards(tmp_path, packed, dict.fromkeys(files, members))
    with pytest.raises(
        UserError, match=r"lacks 1 of the 4 files x-train-\*, the first is number 2; get them, or choose"
    ):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path / "x-train-0000[01]*.tar")).splits["train"].items) == 2
    shards(tmp_path, packed, {"x-train-00002-of-00004.tar": members})
    assert len(open_source(str(tmp_path)).splits["train"].items) == 4


def test_an_archive_that_is_no_tar(tmp_path):
    (tmp_path / "x.7z").write_bytes(b"7z")
    with pytest.raises(UserError, match=r"x.7z cannot be read in place; give a folder, unpacked or from save_to_disk"):
        open_source(str(tmp_path / "x.7z"))


def test_a_class_list_with_a_byte_order_mark(tmp_path, jpeg):
    written(tmp_path, {"train/cat/a.jpg": jpeg(0), "list.txt": "\ufeffcat\ndog\n".encode()})
    assert image_folder(str(tmp_path), str(tmp_path / "list.txt")).classes == ("cat", "dog")


def test_left_out_is_noted_beside_the_file(tmp_path, jpeg, run_python):
    written(tmp_path, {"in/train/cat/a.jpg": jpeg(0), "in/train/cat/a.txt": b"x"})
    script = Path(__file__).resolve().parents[3] / "write_datasets.py"
    done = run_python([script, "--data.source=~/in", "--data.out=~/out/x"], cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    sidecar = json.loads((tmp_path / "out/x_train.json").read_text())
    assert sidecar["left_out"] == {"not an image by its content": 1} and sidecar["skipped"] == 0
    assert not (tmp_path / "~").exists()
