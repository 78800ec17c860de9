"""Shards as one data set, bit for bit; and files that change while they are read, which end the epoch with one line."""

import os
import threading
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from ffcv_ops.errors import UserError
from ffcv_ops.storage import reading
from ffcv_ops.storage.index import pages_of
from tests.ffcv_ops.loading import SAMPLES, STAGE, assert_same, collected, train
from training import loading as loader

pytestmark = pytest.mark.timeout(240)

COUNTS = (40, 1, 35, 20)


@pytest.fixture(scope="module")
def flat(tmp_path_factory, encoded, write_beton, write_shards):
    """One file, and the same images in shards."""
    folder = tmp_path_factory.mktemp("flat")
    return write_beton(folder / "whole.beton", encoded), write_shards(folder, encoded, COUNTS)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, encoded_levels, write_beton, write_shards):
    folder = tmp_path_factory.mktemp("pyramid")
    return write_beton(folder / "whole.beton", encoded_levels), write_shards(folder, encoded_levels, COUNTS)


@pytest.mark.parametrize(("answers", "found"), [([-1, 5, -1, -1, -1, 5], True), ([5, -1, -1, -1, -1, 5], False),
                                                ([5, 0, 5], False)])  # fmt: skip
def test_a_read_that_a_signal_ended_is_repeated(monkeypatch, answers, found):
    """In Python what the threads run as machine code; -1 is an error, 0 the end of the file."""
    asked, left = [], iter(answers)

    def pread(file, address, size, place):
        asked.append((int(address) - int(buffer.ctypes.data), int(size), int(place)))
        return next(left)

    monkeypatch.setattr(reading, "_pread", pread)
    buffer = np.zeros(10, np.uint8)
    address = reading.fetch.py_func(3, np.uint64(100), 10, buffer)
    assert address == (buffer.ctypes.data if found else 0)
    assert all((size, place) == (10 - done, 100 + done) for done, size, place in asked)


# --- shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["os", "process"])
def test_shards_give_the_batches_of_one_file(flat, cache):
    whole, pattern = flat
    for epoch in (0, 2):
        assert_same(collected(train(whole).epoch(epoch)), collected(train(pattern, cache=cache).epoch(epoch)))
    assert_same(collected(train(whole).epoch(0, 3)), collected(train(pattern, cache=cache).epoch(0, 3)))


def test_shards_of_pyramids(pyramid):
    whole, pattern = pyramid
    for least in (None, 1.0):
        stage = replace(STAGE, crop="src", resolution=24, min_oversampling=least)
        assert_same(collected(train(whole, stage).epoch(0)), collected(train(pattern, stage).epoch(0)))


def test_shards_on_several_ranks_and_in_evaluation(flat):
    whole, pattern = flat
    shares = [collected(train(pattern, rank=rank, world=2).epoch(0)) for rank in range(2)]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*shares, strict=True)]
    assert_same(collected(train(whole).epoch(0)), joined)
    one = collected(loader.eval_loader(whole, SAMPLES, STAGE, batch=SAMPLES).epoch(0))
    places = [loader.Placement(rank=rank, world=3) for rank in range(3)]
    loaders = [loader.eval_loader(pattern, SAMPLES, STAGE, batch=10, placement=place) for place in places]
    parts = [batch for batches in loaders for batch in collected(batches.epoch(0))]
    assert_same(one, [tuple(torch.cat(part) for part in zip(*parts, strict=True))])


def test_pages_of_shards_are_shuffled_together(flat):
    """Four shards are four pages here: a window of two of them is read at a time, and all ranks read the same ones."""
    _, pattern = flat
    stage = replace(STAGE, repeats=1, batch=8, mixup=0, cutmix=0)
    batches = train(pattern, stage, shuffle_pages=2)
    pages = pages_of(batches.decoder.levels[0], batches.reader.page_size)
    assert len(set(pages)) == len(COUNTS)
    seen = pages[batches.sample_ids(0) % SAMPLES]
    half = next(k for k in range(len(seen)) if len(set(seen[: k + 1])) == 3)
    assert not set(seen[:half]) & set(seen[half:])
    assert_same(
        collected(batches.epoch(0)), collected(train(pattern, stage, shuffle_pages=2, cache="process").epoch(0))
    )
    shares = [collected(train(pattern, stage, shuffle_pages=2, rank=rank, world=2).epoch(0)) for rank in range(2)]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*shares, strict=True)]
    assert_same(collected(batches.epoch(0)), joined)


def test_another_number_of_samples_than_was_found(flat):
    with pytest.raises(UserError, match="holds 96 samples, no longer 95"):
        loader.train_loader(flat[0], 95, STAGE, seed=5)


# --- files that change ---------------------------------------------------------------------------------------------


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def cut_to_nothing(path):
    os.truncate(path, 0)


def rewritten(path):
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(len(content) // 2)
        file.write(content[len(content) // 2 :])


def replaced(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def touched(path):
    os.utime(path)


CHANGES = [cut, cut_to_nothing, rewritten, replaced, touched]


@pytest.mark.parametrize("cache", ["os", "process"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_changes_between_epochs(tmp_path, encoded, write_shards, change, cache):
    """Stock FFCV dies by SIGBUS, or hands out what is there now."""
    batches = train(write_shards(tmp_path, encoded, COUNTS), cache=cache)
    collected(batches.epoch(0))
    second = sorted(tmp_path.glob("*.beton"))[2]
    change(second)
    with pytest.raises(UserError, match=rf"{second}: was cut, replaced or written to") as caught:
        next(batches.epoch(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cache", ["os", "process"])
@pytest.mark.parametrize("change", [cut, cut_to_nothing, rewritten], ids=lambda change: change.__name__)
def test_a_file_that_changes_within_an_epoch(tmp_path, encoded, write_beton, change, cache):
    """No batch that was read afterwards is handed out: at most those that were ready, which are right."""
    path = write_beton(tmp_path / "x.beton", encoded * 20)
    good = collected(loader.train_loader(path, 1920, STAGE, seed=5, placement=loader.Placement(cache=cache)).epoch(0))
    batches = loader.train_loader(path, 1920, STAGE, seed=5, placement=loader.Placement(cache=cache)).epoch(0)
    got = [tuple(part.clone() for part in next(batches))]
    change(path)
    with pytest.raises(UserError, match="was cut"):
        got += [tuple(part.clone() for part in batch) for batch in batches]
    assert len(got) <= 8
    assert_same(good[: len(got)], got)


@pytest.mark.parametrize("within", [False, True])
def test_a_file_that_is_rewritten_and_its_time_put_back(tmp_path, encoded, write_beton, within):
    """Where there are checksums each image is held against its own; without them the time of the inode tells."""
    path = write_beton(tmp_path / "x.beton", encoded)
    os.chmod(path, 0o600)
    known = train(path, bad_limit=0).epoch(0)
    os.chmod(path, 0o644)
    assert len(collected(known)) == 6, "new rights are no other images"
    for end in (".json", ".xxh64"):
        path.with_suffix(end).unlink()
    batches = train(path)
    epoch = batches.epoch(0)
    if within:
        next(epoch)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(2**21 + 5000)
        file.write(b"other pixels")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = "has no checksums, and was written to, renamed, linked or given"
    if within:  # the thread that reads ahead may look before the time is put back
        told += "|was cut, replaced or written to"
    with pytest.raises(UserError, match=rf"{path}: ({told})"):
        collected(epoch)


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_is_rewritten_under_its_checksums(tmp_path, encoded, write_beton, flip_bit, linked):
    """Its time is put back. What belongs to it may lie beside the file that a link leads to."""
    file = path = write_beton(tmp_path / "x.beton", encoded)
    if linked:
        path = tmp_path / "link.beton"
        path.symlink_to(file)
    each_once = replace(STAGE, repeats=1)
    batches = train(path, each_once)
    collected(batches.epoch(0))
    before = file.stat()
    flip_bit(file, 7)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for opened in (batches, train(path, each_once)):
        with pytest.raises(UserError, match=rf"{path}: sample 7 x/7\.jpg is not what was written"):
            collected(opened.epoch(1))


def test_a_file_that_is_gone(tmp_path, encoded, write_beton):
    path = write_beton(tmp_path / "x.beton", encoded)
    batches = train(path)
    epoch = batches.epoch(0)
    next(epoch)
    path.unlink()
    assert len(collected(epoch)) == 5  # it is open, and whole
    with pytest.raises(UserError, match=r"x\.beton: cannot be opened any more: No such file"):
        next(batches.epoch(1))


# --- nothing is left behind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["os", "process"])
def test_thirty_epochs_left_early(flat, cache):
    batches, process = train(flat[1], cache=cache), psutil.Process()

    def leave(times):
        for epoch in range(times):
            for _batch in batches.epoch(epoch):
                break

    leave(5)
    threads, files, memory = set(threading.enumerate()), process.open_files(), process.memory_info().rss
    leave(30)
    assert not set(threading.enumerate()) - threads
    assert process.open_files() == files
    assert process.memory_info().rss - memory < 25e6
