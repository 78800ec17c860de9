"""Conversions that are stopped and go on, at many places, against unbroken ones."""

import functools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conversion import beton, journal, shard_writer
from conversion import convert as convert_module
from conversion.beton import BetonWriter
from conversion.convert import WriteOptions, convert
from conversion.encode import ImageConfig, encode_item
from conversion.shards import auto_shards, shards_of
from conversion.sources import image_folder
from ffcv_ops.errors import UserError

CHUNK = 10
OPTIONS = {"on_error": "skip", "workers": 1, "page_size": beton.MIN_PAGE_SIZE}
LEVELS = (48, 32, 16)
KINDS = {
    "file": {},
    "pyramid": {},
    "shards": {"shards": 3},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """75 pictures of two classes, 5 of them no pictures; raw, the pyramid fills several pages."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(75):
        folder = root / "train" / ("first" if number < 40 else "second")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{number:02}.png"
        if number % 17 == 3:
            file.write_text("no picture")
        else:
            Image.fromarray(rng.integers(0, 256, (60 - number % 40, 50, 3), dtype=np.uint8)).save(file)
    return image_folder(str(root))


def run(source, path, kind="file", **options):
    levels = LEVELS if kind == "pyramid" else None
    image = ImageConfig(max_side=48, mode="raw", levels=levels)
    return convert(source, "train", path, image, WriteOptions(**{**OPTIONS, **KINDS[kind], **options}))


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        run(pictures, folder / "x_train.beton", kind)
    return folders


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(shard_writer, "CHUNK", CHUNK)


class Stopped(Exception):
    pass


def stop_after(monkeypatch, module, name, calls):
    """The `calls`-th call of a function raises, as an interruption at that moment does."""
    original, left = getattr(module, name), calls

    def stopping(*args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", [5, 24, 43, 69])
def test_goes_on_to_the_same_bytes(pictures, whole, small_chunks, tmp_path, monkeypatch, capfd, kind, calls):
    """Stopped while images are written; at most a chunk is written again."""
    path = tmp_path / "x_train.beton"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, BetonWriter, "append", calls)
        run(pictures, path, kind)
    assert not any(name.startswith("x_train.beton") and not name.endswith(".partial") for name in files(tmp_path))
    if calls < CHUNK:
        assert files(tmp_path) == {}, "nothing worth keeping"
    again, original = 0, BetonWriter.append

    def counted(*args):
        nonlocal again
        again += 1
        return original(*args)

    monkeypatch.setattr(BetonWriter, "append", counted)
    run(pictures, path, kind)
    assert files(tmp_path) == files(whole[kind])
    assert again <= 70 - calls + CHUNK
    assert ("finished" in capfd.readouterr().err) == (again < 70) == (calls > CHUNK)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [(convert_module, "check_index"), (os, "replace"), (beton, "index_checksum")])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_stopped_at_the_end(pictures, whole, small_chunks, tmp_path, monkeypatch, kind, call, calls):
    """While the file is read back, described, or renamed: what has the final name is complete."""
    path = tmp_path / "x_train.beton"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, *call, calls)
        run(pictures, path, kind)
        raise Stopped  # it has fewer such calls
    for name, content in files(tmp_path).items():
        if name.endswith(".beton"):
            assert content == files(whole[kind])[name]
    run(pictures, path, kind)
    assert files(tmp_path) == files(whole[kind])


@pytest.fixture
def stopped(pictures, small_chunks, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, BetonWriter, "append", 43)
        run(pictures, tmp_path / "x_train.beton")
    return tmp_path / "x_train.beton"


def test_remains_are_checked(pictures, whole, stopped):
    """A journal with half a record, a file that was cut: it goes on from what is sound."""
    with open(stopped.with_name("x_train.journal.partial"), "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 7)
    os.truncate(f"{stopped}.partial", beton.MIN_PAGE_SIZE + 100_000)
    run(pictures, stopped)
    assert files(stopped.parent) == files(whole["file"])


def test_remains_that_are_gone(pictures, whole, stopped):
    os.unlink(f"{stopped}.partial")
    run(pictures, stopped)
    assert files(stopped.parent) == files(whole["file"])


def test_garbage_behind_the_last_record(pictures, whole, stopped):
    """What the stopped run wrote behind it leaves no trace, even where nothing is written again."""
    with open(f"{stopped}.partial", "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"garbage" * 10**6)
    run(pictures, stopped)
    assert files(stopped.parent) == files(whole["file"])


@pytest.mark.parametrize("chunk", [0, 2])
def test_what_was_finished_is_read_again(pictures, whole, stopped, capfd, chunk):
    """It goes on from what is before the damage."""
    with open(whole["file"] / "x_train.beton", "rb") as file:
        table = np.fromfile(file, beton.sample_type(), 70, offset=beton.metadata_start())
    with open(f"{stopped}.partial", "r+b") as file:
        file.seek(int(table["image"]["data_ptr"][max(0, 10 * chunk - 1)]) + 1000)
        file.write(b"rot")
    run(pictures, stopped)
    assert files(stopped.parent) == files(whole["file"])
    said = capfd.readouterr().err
    assert ("behind the 20 of 75 images" in said) if chunk else ("continues" not in said)


def test_changed_images_are_refused(pictures, stopped):
    """One that was stored and one that was refused."""
    journal_file = stopped.with_name("x_train.journal.partial")
    before = journal_file.read_bytes()
    for number in (0, 3):
        file = Path(pictures.origin, pictures.splits["train"].names[number])
        content = file.read_bytes()
        try:
            Image.new("RGB", (60, 50)).save(file)
            with pytest.raises(UserError, match=rf"{file.name} has changed since the unfinished"):
                run(pictures, stopped)
        finally:
            file.write_bytes(content)
    assert journal_file.read_bytes() == before


def test_another_list_of_images_is_refused(pictures, stopped):
    split = pictures.splits["train"]
    fewer = split._replace(items=split.items[:-1], names=split.names[:-1], labels=split.labels[:-1])
    with pytest.raises(UserError, match=r"x_train\.unfinished: .* images 75 instead of 74, names "):
        run(pictures._replace(splits={"train": fewer}), stopped)
    os.unlink(stopped.with_name("x_train.unfinished"))
    run(pictures._replace(splits={"train": fewer}), stopped)
    assert json.loads(stopped.with_suffix(".json").read_text())["samples"] == 69


@pytest.mark.parametrize("how", ["other shards", "other settings", "interrupted"])
def test_finished_shards_are_kept(pictures, whole, tmp_path, monkeypatch, how):
    """Stopped between two shards, where nothing is left but the notes of what is finished."""
    path = tmp_path / "x_train.beton"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, BetonWriter, "append", 26)
        run(pictures, path, "shards")
    before = files(tmp_path)
    assert sorted(before)[0] == "x_train-00000-of-00003.beton" and not any(".partial" in name for name in before)
    if how == "interrupted":
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, convert_module, "identity_of", 0)
            run(pictures, path, "shards")
    else:
        changes = {"shards": 4} if how == "other shards" else {"page_size": 2 * beton.MIN_PAGE_SIZE}
        with pytest.raises(UserError, match=r"remove (those first|this file to start over)$"):
            run(pictures, path, "shards", **changes)
    assert files(tmp_path) == before
    written = []
    monkeypatch.setattr(
        BetonWriter, "finish", lambda self, finish=BetonWriter.finish: written.append(1) or finish(self)
    )
    run(pictures, path, "shards")
    assert (len(written), files(tmp_path)) == (2, files(whole["shards"]))


@pytest.mark.parametrize("number", [0, 2])
def test_a_finished_shard_whose_images_have_changed_is_written_again(pictures, tmp_path, monkeypatch, capfd, number):
    """With refused images in it, by which the numbers of samples and of images differ."""
    path = tmp_path / "x_train.beton"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, BetonWriter, "append", 40)
        run(pictures, path, "shards")
    file = Path(pictures.origin, pictures.splits["train"].names[number])
    content = file.read_bytes()
    try:
        Image.new("RGB", (60, 50)).save(file)
        run(pictures, path, "shards")
        assert f"{file.name} has changed; this shard is written again" in capfd.readouterr().err
        found = files(tmp_path)
        run(pictures, tmp_path / "anew" / path.name, "shards")
        assert found == files(tmp_path / "anew")
    finally:
        file.write_bytes(content)


def test_the_death_of_the_one_that_reads_back(pictures, tmp_path, monkeypatch):
    """It is told from the workers', and what was finished is kept."""
    monkeypatch.setattr(shard_writer, "_check_images", _ends)
    with pytest.raises(UserError, match=r"the process that reads .*x_train\.beton\.partial back died"):
        run(pictures, tmp_path / "x_train.beton")


def _ends(path, arrays):
    os._exit(1)


def test_stop_after_skip(pictures, stopped):
    """Going on with data.on_error=stop finds what was skipped before."""
    with pytest.raises(UserError, match=r"03\.png: is not an image .known formats: .*; "):
        run(pictures, stopped, on_error="stop")


def test_a_complete_file_is_written_anew(pictures, tmp_path, capfd):
    """A file of the same name may have got another content."""
    for _ in range(2):
        run(pictures, tmp_path / "x_train.beton")
    assert "continues" not in capfd.readouterr().err


def test_shards_share_the_items():
    for count, shards in ((10, 3), (3, 10), (1, 1), (0, 4), (1000, 7)):
        found = shards_of(Path("d/x_train.beton"), count, shards)
        assert [k for shard in found for k in shard.items] == list(range(count))
        assert len(found) == max(1, min(count, shards)) and {shard.count for shard in found} == {len(found)}
        assert all(len(shard.items) > 0 for shard in found) or not count
    assert [str(shard.path) for shard in shards_of(Path("d/x.beton"), 5, 2)] == [
        "d/x-00000-of-00002.beton",
        "d/x-00001-of-00002.beton",
    ]


def test_levels_that_are_shared_count_once_for_the_number_of_shards(pictures, monkeypatch):
    """No picture is larger than the levels: the pyramid takes as much as the single size."""
    monkeypatch.setattr("conversion.shards.SHARD_BYTES", 30_000)
    items = [item for number, item in enumerate(pictures.splits["train"].items) if number % 17 != 3]
    encode = functools.partial(encode_item, read=pictures.read)
    single = auto_shards(items, functools.partial(encode, image=ImageConfig(max_side=100, mode="raw")))
    pyramid = ImageConfig(levels=(100, 90, 80), mode="raw")
    assert auto_shards(items, functools.partial(encode, image=pyramid)) == single > 5


def test_journal(tmp_path):
    """Every cut leaves the whole records before it; a changed byte ends the file there."""
    with open(tmp_path / "journal", "w+b") as file:
        for k in range(3):
            journal.add(file, {"number": np.array(k), "values": np.arange(100 * k)})
    content = (tmp_path / "journal").read_bytes()
    ends = [found.start() - 16 for found in re.finditer(rb"PK\x03\x04", content) if content[found.start() - 8 :][:2]]
    assert len(ends) >= 3
    for length in range(0, len(content), 97):
        (tmp_path / "cut").write_bytes(content[:length])
        with open(tmp_path / "cut", "r+b") as file:
            found = [int(record["number"]) for record in journal.records(file)]
            kept = file.seek(0, os.SEEK_END)
            assert found == list(range(len(found))) and kept <= length
            assert [int(record["number"]) for record in journal.records(file)] == found
    assert len(found) == 2
    (tmp_path / "cut").write_bytes(content[:-500] + b"rot" + content[-497:])
    with open(tmp_path / "cut", "r+b") as file:
        assert [int(record["number"]) for record in journal.records(file)] == [0, 1]
