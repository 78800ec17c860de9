"""From outside: folders, archives and lists as people have them, the command, and what is then in the files."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from conversion import beton

PETS = [f"{name}/{k}.jpg" for name in ("cat", "dog") for k in range(10)]
DIVIDED = ("train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg")


def lines_of(split, out="data/pets"):
    return Path(f"{out}_{split}.files.txt").read_text().splitlines()


def labels_of(split, out="data/pets"):
    return [label for _, label in beton.read(Path(f"{out}_{split}.beton"))]


def classes_of(out="data/pets"):
    return json.loads(Path(f"{out}_train.json").read_text())["classes"]


def zipped(files, **options) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def refused(done, words):
    assert done.status == 2 and words in done.err, done.err
    assert done.err.splitlines()[-1].startswith("error: ") and done.err.count("error: ") == 1


def test_class_folders_at_the_top(pictures, write):
    pictures(*(f"pets/{name}" for name in PETS))
    done = write("--data.source=pets")
    assert done.status == 0, done.err
    assert "pets is not divided: 0.1 of each class becomes val; --data.val_share=none leaves all in train" in done.err
    assert len(lines_of("train")) == 18 and len(lines_of("val")) == 2
    reference = {path.removeprefix("pets/"): label for path, label in ImageFolder("pets").samples}
    found = dict(zip(lines_of("train") + lines_of("val"), labels_of("train") + labels_of("val"), strict=True))
    assert found == reference and classes_of() == ["cat", "dog"]
    assert write("--data.source=pets", "--data.val_share=none", "--data.out=whole").status == 0
    assert sorted(lines_of("train", "whole")) == sorted(reference) and not Path("whole_val.beton").exists()


@pytest.mark.parametrize(
    ("val", "test", "written"),
    [
        ("valid", None, {"train": "train", "val": "valid"}),
        ("Validation", "testing", {"train": "train", "val": "Validation", "test": "testing"}),
        (None, "test", {"train": "train", "val": "test"}),
    ],
)
def test_words_for_splits(pictures, write, val, test, written):
    for folder in filter(None, (val, test)):
        pictures(f"pets/{folder}/cat/9.jpg", f"pets/{folder}/dog/9.jpg")
    pictures(*(f"pets/{name}" for name in DIVIDED), "pets/docs/page.jpg")
    done = write("--data.source=pets")
    assert done.status == 0, done.err
    assert {path.stem.removeprefix("pets_") for path in Path("data").glob("*.beton")} == set(written)
    for split, folder in written.items():
        assert {line.split("/")[0] for line in lines_of(split)} == {folder}
    assert "only its splits are read, not docs" in done.err
    assert ("has no val; its test is written as val" in done.err) == (val is None)


def test_a_test_without_labels_is_left_out(pictures, write):
    pictures(*(f"pets/{name}" for name in DIVIDED), "pets/test/1.jpg")
    done = write("--data.source=pets")
    assert done.status == 0 and "pets/test is left out: it has no class folders" in done.err
    assert [path.name for path in Path("data").glob("*.beton")] == ["pets_train.beton"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["cat/1.jpg", "dog/1.jpg", "test/1.jpg"],
            "has class folders (cat, dog) beside test/, which may be a class or",
        ),
        (["car/1.jpg", "train/1.jpg"], "beside train/, which may be a class or a split; put the classes into"),
        ([*DIVIDED, "val/cat/1.jpg", "valid/cat/1.jpg"], "val and valid are both val; take one of them out"),
        (["val/cat/1.jpg", "test/cat/1.jpg"], "has test/, but no folder train/"),
        (["train/1.jpg", "test/1.jpg"], "train has no class folders; images belong in"),
        (
            ["train/1.jpg", "test/1.jpg", "train.csv"],
            "images belong in {pets}/train/<class>/; or give a table",
        ),
        (["train/1.jpg", "docs/1.jpg", "train.csv"], "or rename train/; or give a table of their classes, "),
        (["train_images/1.jpg", "test_images/1.jpg"], "holds test_images, train_images, called as splits are, and no"),
        (["images/1.jpg", "labels.csv"], "holds images, one folder, and no class folders; images belong in"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_layouts_that_are_unclear(pictures, write, packed, kind, names, words):
    files = pictures(*(f"pets/{name}" for name in names))
    members = {name.removeprefix("pets/"): content for name, content in files.items()}
    Path("pets.zip").write_bytes(zipped(members))
    Path("pets.tar").write_bytes(packed(members))
    place = Path("pets" if kind == "folder" else f"pets.{kind}")
    refused(write(f"--data.source={place}"), words.replace("{pets}", str(place.absolute())))


def test_a_folder_with_a_list_beside_its_images(pictures, write):
    pictures("pets/1.jpg", "pets/2.jpg")
    Path("pets/train.csv").write_text("id,label\n1,cat\n2,dog\n")
    refused(write("--data.source=pets"), "or give a table of their classes, --data.source=")
    Path("pets.zip").write_bytes(zipped({"pets/1.jpg": b"", "pets/train.csv": b""}))
    refused(write("--data.source=pets.zip"), "or give a table of their classes, unpacked: --data.source=")


@pytest.mark.parametrize("top", ["", "pets/", "./archive/pets/"])
@pytest.mark.parametrize("kind", ["stored", "deflated", "tar"])
def test_archives_of_class_folders(pictures, write, packed, kind, top):
    """The same bytes as from the folder, and the same val; what macOS adds is left out."""
    files = pictures(*(f"in/{name}" for name in PETS))
    members = {f"{top}{name.removeprefix('in/')}": content for name, content in files.items()}
    members |= {"__MACOSX/pets/cat/._1.jpg": b"metadata", f"{top}cat/notes.txt": b"a cat", f"{top}cat/Thumbs.db": b"B"}
    place = Path("pets.tar" if kind == "tar" else "pets.zip")
    method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    place.write_bytes(packed(members) if kind == "tar" else zipped(members, compression=method))
    done = write(f"--data.source={place}")
    assert done.status == 0, done.err
    assert "2 not an image by its content" in done.err and "is read as a" in done.err
    assert write("--data.source=in", "--data.out=folder").status == 0
    for split in ("train", "val"):
        assert Path(f"data/pets_{split}.beton").read_bytes() == Path(f"folder_{split}.beton").read_bytes()
        assert lines_of(split) == lines_of(split, "folder")
    assert classes_of() == ["cat", "dog"]


def test_a_divided_zip_and_names_of_all_sorts(write, jpeg):
    """UTF-8 without the flag, as macOS writes; backslashes; an image without an ending; a name that climbs out."""
    members = {
        "train/über/1.jpg": jpeg(0), "train/über/2": jpeg(1), "train\\ß\\1.jpg": jpeg(2),
        "valid/über/1.jpg": jpeg(3), "valid/ß/1.jpg": jpeg(4), "../../outside/1.jpg": jpeg(5),
    }  # fmt: skip
    content = zipped(members)
    flagged = bytearray(content)
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = flagged.find(mark)
        while start >= 0:
            flagged[start + at + 1] &= ~8
            start = flagged.find(mark, start + 1)
    Path("pets.zip").write_bytes(flagged)
    done = write("--data.source=pets.zip")
    assert done.status == 0, done.err
    assert classes_of() == ["ß", "über"]
    assert lines_of("train") == ["train/ß/1.jpg", "train/über/1.jpg", "train/über/2"] and len(lines_of("val")) == 2


def damaged(content):
    at = content.index(b"cat/1.jpg") + 200
    return content[:at] + bytes(50) + content[at + 50 :]


def encrypted(content):
    at = content.index(b"PK\1\2") + 8
    return content[:at] + bytes([content[at] | 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: content[:-100], "pets.zip is not a whole zip file: "),
        (lambda content: b"", "pets.zip is not a whole zip file: "),
        (lambda content: b"PK\3\4 what is this", "pets.zip is not a whole zip file: "),
        (damaged, "pets.zip/cat/1.jpg: is damaged in the zip file (CRC-32)"),
        (encrypted, "pets.zip is encrypted; unpack it with its password"),
    ],
)
def test_zips_that_cannot_be_used(write, jpeg, spoil, words):
    Path("pets.zip").write_bytes(spoil(zipped({name: jpeg(k) for k, name in enumerate(PETS)})))
    refused(write("--data.source=pets.zip", "--data.val_share=none"), words)


def test_a_zip_that_claims_too_much(write, jpeg):
    """More bytes than the directory says: no more than these are unpacked."""
    content = zipped({name: jpeg(k) for k, name in enumerate(PETS)}, compression=zipfile.ZIP_DEFLATED)
    at = content.index(b"PK\1\2") + 24
    Path("pets.zip").write_bytes(content[:at] + (5).to_bytes(4, "little") + content[at + 4 :])
    refused(write("--data.source=pets.zip", "--data.val_share=none"), "is damaged in the zip file (CRC-32)")


def test_one_class_twice_in_a_zip(write, jpeg):
    with pytest.warns(UserWarning, match="Duplicate name"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for k in range(2):
                archive.writestr("cat/1.jpg", jpeg(k))
    Path("pets.zip").write_bytes(stream.getvalue())
    refused(write("--data.source=pets.zip"), "cat/1.jpg is there twice")


def kaggle(folder, rows, header="id,breed"):
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "pets.csv").write_text("\n".join([header, *rows, ""]))


def test_a_list_as_kaggle_hands_it_out(pictures, write):
    """Ids without an ending, images in a folder beside the list, another one with those of the test."""
    pictures(*(f"k/train/{k}.jpg" for k in range(20)), *(f"k/test/t{k}.jpg" for k in range(3)))
    kaggle("k", [f"{k},{'cat' if k % 4 else 'dog'}" for k in range(20)])
    done = write("--data.source=k/pets.csv")
    assert done.status == 0, done.err
    assert "pets.csv is read as a list: 20 images, 2 classes (cat, dog)" in done.err
    assert sorted(lines_of("train") + lines_of("val")) == sorted(f"{k}.jpg" for k in range(20))
    for split in ("train", "val"):
        assert labels_of(split) == [int(int(name.removesuffix(".jpg")) % 4 == 0) for name in lines_of(split)]


SPLIT = [("a/1.jpg", "dog", "train"), ("a/2.jpg", "cat", "train"), ("b/3.PNG", "dog", "valid"), ("b/4.jpg", "", "test")]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "semicolons", "bom"])
def test_kinds_of_lists(pictures, write, ending):
    """A split column, a test without labels, columns in any order, a quoted name, and images elsewhere."""
    pictures("img/a/1.jpg", "img/a/2.jpg", "img/b/3.PNG", "img/b/4.jpg")
    path = Path(f"pets.{ending if len(ending) < 6 and ending != 'bom' else 'csv'}")
    if ending == "jsonl":
        rows = [json.dumps({"file_name": name, "label": label or None, "split": part}) for name, label, part in SPLIT]
        path.write_text("\n".join(rows))
    else:
        mark = {"tsv": "\t", "semicolons": ";"}.get(ending, ",")
        rows = [mark.join((label, f'"{name}"', "7", part)) for name, label, part in SPLIT]
        header = mark.join(("Label", "where", "age", "Data Set"))
        path.write_text("\r\n".join([header, *rows]), encoding="utf-8-sig" if ending == "bom" else "utf-8")
    done = write(f"--data.source={path}", "--data.images=img")
    assert done.status == 0, done.err
    assert lines_of("train") == ["a/1.jpg", "a/2.jpg"] and lines_of("val") == ["b/3.PNG"]
    assert labels_of("train") == [1, 0] and labels_of("val") == [1]
    assert "left out: 1 rows of test, which has no labels (b/4.jpg)" in done.err


def test_numbers_of_rows_and_objects_are_no_columns_of_ours(pictures, write):
    pictures("0.jpg", "1.jpg", "2.jpg")
    Path("pets.csv").write_text("id,image,label\n0,2.jpg,cat\n1,0.jpg,dog\n2,1.jpg,cat\n")
    assert write("--data.source=pets.csv", "--data.val_share=none").status == 0
    assert lines_of("train") == ["2.jpg", "0.jpg", "1.jpg"]
    Path("boxes.jsonl").write_text('{"f": "1.jpg", "boxes": [1], "kind": "cat"}\n{"f": "2.jpg", "kind": "dog"}')
    assert write("--data.source=boxes.jsonl", "--data.val_share=none").status == 0
    assert classes_of("data/boxes") == ["cat", "dog"]


def test_columns_by_name_and_lists_without_a_header(pictures, write):
    pictures("1.jpg", "2.jpg")
    Path("pets.csv").write_text("file,fine,coarse\n1.jpg,cat,pet\n2.jpg,oak,tree\n")
    refused(
        write("--data.source=pets.csv"), "--data.label=COLUMN must say where the classes are; there is fine, coarse"
    )
    refused(write("--data.source=pets.csv", "--data.label=medium"), "there is fine, coarse")
    assert write("--data.source=pets.csv", "--data.label=coarse", "--data.val_share=none").status == 0
    assert classes_of() == ["pet", "tree"]
    Path("bare.csv").write_text("1.jpg,cat\n2.jpg,oak\n")
    assert write("--data.source=bare.csv", "--data.val_share=none").status == 0
    assert classes_of("data/bare") == ["cat", "oak"] and labels_of("train", "data/bare") == [0, 1]


@pytest.mark.parametrize(
    ("numbers", "words", "classes", "labels"),
    [
        ([10, 9, 10], [], ["9", "10"], [1, 0, 1]),
        ([2, 0, 1], ["--data.classes=names.txt"], ["ant", "bee", "cow"], [2, 0, 1]),
        ([3, 1, 2], ["--data.classes=names.txt"], ["ant", "bee", "cow"], [2, 0, 1]),
        ([2, 0, 0], ["--data.classes=numeric"], ["0", "1", "2"], [2, 0, 0]),
    ],
)
def test_labels_that_are_numbers(pictures, write, numbers, words, classes, labels):
    """In their own order; from 0 or from 1 where a file names them."""
    pictures("1.jpg", "2.jpg", "3.jpg")
    Path("names.txt").write_text("ant\nbee\ncow\n")
    Path("pets.csv").write_text("".join(f"{k}.jpg,{number}\n" for k, number in enumerate(numbers, 1)))
    done = write("--data.source=pets.csv", "--data.val_share=none", *words)
    assert done.status == 0, done.err
    assert (classes_of(), labels_of("train")) == (classes, labels)
    assert ("--data.classes=FILE gives names, a line each" in done.err) == (not words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("f,label\n1.jpg,cat\n9.jpg,dog\n", "pets.csv line 3: no image 9.jpg in "),
        ("f,label\n9.jpg,cat\n8.jpg,dog\n", "pets.csv line 2: none of its values names an image in "),
        ("f,label\n1.jpg,cat\n2.jpg,\n", "pets.csv line 3: 2.jpg has no label"),
        ("f,label\n1.jpg,cat\n1.jpg,dog\n", "pets.csv line 3: 1.jpg is in line 2 too, with another class or split"),
        ("f,label,split\n1.jpg,cat,train\n2.jpg,cat,both\n", "pets.csv line 3: the split both is neither train, val"),
        ("f,label\n1.jpg,cat\n2.jpg\n", "pets.csv line 3: 1 values, where the first line has 2"),
        ("f,label\n", "pets.csv has no rows below its header"),
        ("", "pets.csv has no rows below its header"),
        (b"f,label\n1.jpg,cat\n2.jpg,\xff\n", "pets.csv line 3: no UTF-8 text; save the list as UTF-8"),
        ('f,label\n"1.jpg,cat\n', "pets.csv line 2: unexpected end of data"),
    ],
)
def test_lists_that_cannot_be_used(pictures, write, content, words):
    pictures("1.jpg", "2.jpg")
    Path("pets.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(write("--data.source=pets.csv"), words)


def test_repeated_rows_and_images_in_several_folders(pictures, write):
    pictures("1.jpg", "2.jpg")
    Path("pets.csv").write_text("f,label\n1.jpg,cat\n2.jpg,dog\n1.jpg,cat\n")
    done = write("--data.source=pets.csv", "--data.val_share=none")
    assert done.status == 0 and "left out: 1 repeated rows (1.jpg)" in done.err and len(lines_of("train")) == 2
    pictures("k/a/1.jpg", "k/b/1.jpg")
    kaggle("k", ["1,cat"])
    refused(write("--data.source=k/pets.csv"), "its images may be in a, b; --data.images=FOLDER says in which")
    Path("pets.jsonl").write_text('{"f": "1.jpg", "label": 1}\n[1]\n')
    refused(write("--data.source=pets.jsonl"), "pets.jsonl line 2: not an object such as")


MODULE = """
import numpy as np
from PIL import Image

class Squares:
    classes = ["dark", "light"]
    def __init__(self, count=6, kind="array"):
        self.count, self.kind = count, kind
    def __len__(self):
        return self.count
    def __getitem__(self, k):
        if k >= self.count:
            raise IndexError(k)
        if self.kind == "late" and k:
            raise RuntimeError("no such disk")
        pixels = np.full((8, 8, 3), 20 + 200 * (k % 2), np.uint8)
        image = {"array": pixels, "pillow": Image.fromarray(pixels), "path": f"pets/{k}.jpg", "float": pixels / 255,
                 "planes": pixels.transpose(2, 0, 1), "nothing": None,
                 "bytes": open("pets/0.jpg", "rb").read() if self.kind == "bytes" else b""}.get(self.kind, pixels)
        return image, "light" if self.kind == "text" else k % 2

squares = Squares()
pillow = lambda: Squares(kind="pillow")
path = lambda: Squares(kind="path")
content = lambda: Squares(kind="bytes")
floats = lambda: Squares(kind="float")
planes = lambda: Squares(kind="planes")
nothing = lambda: Squares(kind="nothing")
late = lambda: Squares(kind="late")
text = lambda: Squares(kind="text")

def divided(split):
    return Squares({"train": 6, "val": 2}[split])

def broken():
    raise RuntimeError("no such disk")
"""


@pytest.mark.parametrize("name", ["Squares", "squares", "pillow", "path", "content"])
def test_a_data_set_in_python(pictures, write, name, monkeypatch):
    pictures(*(f"pets/{k}.jpg" for k in range(6)))
    monkeypatch.syspath_prepend("")
    Path(f"squares_{name}.py").write_text(MODULE)
    words = ("--data.val_share=none", "--data.out=data/pets", "--image.mode=raw")
    done = write(f"--data.source=squares_{name}:{name}", *words)
    assert done.status == 0, done.err
    assert labels_of("train") == [0, 1] * 3 and classes_of() == ["dark", "light"]
    if name in ("Squares", "squares", "pillow"):
        pixels = [np.unique(rgb).tolist() for rgb, _ in beton.read(Path("data/pets_train.beton"))]
        assert pixels == [[20], [220]] * 3
    assert lines_of("train")[1] == ("pets/1.jpg" if name == "path" else "all/1")


def test_a_data_set_in_python_that_is_divided(write, monkeypatch):
    Path("squares_divided.py").write_text(MODULE)
    done = write("--data.source=squares_divided:divided")
    assert done.status == 0, done.err
    assert len(lines_of("train", "data/divided")) == 6 and len(lines_of("val", "data/divided")) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:squares", "nowhere:squares: ModuleNotFoundError: No module named 'nowhere'"),
        ("squares_bad:circles", "squares_bad:circles: AttributeError: "),
        ("squares_bad:broken", "squares_bad:broken(): RuntimeError: no such disk"),
        ("squares_bad:np", "squares_bad:np(): TypeError: "),
        ("squares_bad:late", "squares_bad:late: sample 1 of all: RuntimeError: no such disk"),
        ("squares_bad:text", "sample 0 of all is not (image, class number): it has no single class number"),
        ("squares_bad:floats", "is a float64 array of shape (8, 8, 3); it must be uint8 (height, width, 3)"),
        ("squares_bad:planes", "is a uint8 array of shape (3, 8, 8); it must be uint8 (height, width, 3)"),
        ("squares_bad:nothing", "is a NoneType, not a Pillow image, uint8 array, path or the bytes of a file"),
    ],
)
def test_names_that_are_no_data_set(write, name, words):
    Path("squares_bad.py").write_text(MODULE)
    refused(write(f"--data.source={name}"), words)
