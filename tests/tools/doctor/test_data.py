"""Data that is missing, slow or larger than memory."""

import pytest

from ffcv_ops import host
from tools.doctor import __main__ as command
from tools.doctor import data, questions
from tools.doctor.findings import FAULT, OK, WARNING


def test_data_larger_than_memory(monkeypatch, jpg_beton, found):
    monkeypatch.setattr(host, "memory", lambda: (2**30, 2**29, jpg_beton.stat().st_size))
    (row,) = found("data and memory", [str(jpg_beton)], None)
    assert row.state == WARNING and "--data.shuffle_pages=64 --data.cache=process" in row.fix
    monkeypatch.undo()
    (row,) = data.data_in_memory([jpg_beton])
    assert row.state == OK


def test_a_slow_disk(jpg_beton, monkeypatch):
    known = {"samples": 96, "classes": 5}
    monkeypatch.setattr(host, "read_speed", lambda path: (1000.0, True))
    _, row = data.beton("x.beton", [jpg_beton], known, True)
    assert row.state == WARNING and "local SSD" in row.fix
    monkeypatch.setattr(host, "read_speed", lambda path: (1e12, True))
    _, row = data.beton("x.beton", [jpg_beton], known, True)
    assert row.state == OK


def test_shards_are_one_data_set(stand_ins, tmp_path, encoded, write_shards, monkeypatch, answers_of):
    """Named twice, beside one of them; two rows for each name, and a missing one is a fault."""
    pattern = str(write_shards(tmp_path, encoded, (20, 40, 36)))
    largest = tmp_path / "x_train-00001-of-00003.beton"
    timed = []
    monkeypatch.setattr(host, "read_speed", lambda path: timed.append(path) or (1e12, True))
    answers_of({pattern: {"samples": 96, "classes": 5}, str(largest): {}})
    rows = list(command.examine([pattern, str(largest), pattern], None))
    assert timed == [largest, largest]
    assert [row.found.split(",")[0] for row in rows if row.what == pattern] == ["96 images"]
    assert [row.found.split(",")[0] for row in rows if row.what == str(largest)] == ["40 images"]
    size = sum(path.stat().st_size for path in tmp_path.glob("*.beton")) / 1e6
    (row,) = [row for row in rows if row.what == "data and memory"]
    assert row.found.startswith(f"{size:.3g} MB of files")
    monkeypatch.undo()
    largest.unlink()
    (answer,) = questions.answers(questions.FILES, [pattern]).values()
    assert "shard 1 of 3 is missing" in answer["refused"]
    (row,) = data.beton(pattern, [tmp_path / "x_train-00000-of-00003.beton"], answer, True)
    assert row.state == FAULT and "shard 1 of 3 is missing" in row.found


@pytest.mark.parametrize(("name", "rest"), [
    ("data/photos_val.beton", ""),
    ("data/imagenet_train.beton", " --data.source=FOLDER --data.out=data/imagenet"),
    ("/d/in_21k_train-*.beton", " --data.source=FOLDER --data.out=/d/in_21k"),
    ("mine.beton", " --data.source=FOLDER"),
])  # fmt: skip
def test_the_command_for_a_missing_file_writes_one_of_its_name(name, rest):
    (found,) = data.beton(name, [], {}, True)
    assert (found.found, found.fix) == ("no such file", f"python write_datasets.py{rest}")
