"""Checkpoint files under the faults that they are made for: kills, flipped bits, cuts, full disks, hostile contents."""

import argparse
import errno
import io
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from ffcv_ops.errors import UserError
from training.saving import checkpoint

ROOT = Path(__file__).resolve().parents[3]


def content(step):
    return {"step": step, "weights": torch.full((300,), float(step)), "nested": {"none": None, "list": [1, 2.5, "x"]}}


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of the steps 5 and 10."""
    for step in (5, 10):
        checkpoint.write(tmp_path, step, content(step), keep=2)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_comes_back_and_the_last_ones_are_kept(folder):
    path, found = checkpoint.newest(folder, pytest.fail)
    assert path.name == "000000010.pt"
    assert torch.equal(found["weights"], torch.full((300,), 10.0))
    assert found["nested"] == {"none": None, "list": [1, 2.5, "x"]}
    for step in (15, 1_000_000_000):
        checkpoint.write(folder, step, content(step), keep=2)
    assert names(folder) == ["000000015.pt", "1000000000.pt"]
    assert checkpoint.newest(folder, pytest.fail)[1]["step"] == 1_000_000_000
    assert checkpoint.newest(folder / "nothing", pytest.fail) is None


def test_the_checksum_is_that_of_all_bytes_and_torch_reads_the_file_as_it_is(folder):
    """`--init` takes such a file too."""
    path = folder / "000000010.pt"
    data, mark, line = path.read_bytes().rpartition(b"\nxxh3_128 ")
    assert mark
    assert line.decode() == xxhash.xxh3_128_hexdigest(data) + "\n"
    assert torch.equal(torch.load(path, weights_only=True)["weights"], content(10)["weights"])


@pytest.mark.parametrize("fault, words", [
    (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
    (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "Stale file handle"),
    (MemoryError(), "too little memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), "too little memory"),
])  # fmt: skip
def test_what_cannot_be_read_now_is_not_taken_for_damaged(fault, words, folder, monkeypatch):
    def load(*given, **named):
        raise fault

    monkeypatch.setattr(checkpoint.torch, "load", load)
    with pytest.raises(UserError, match=rf"000000010\.pt cannot be read now \({words}\); nothing is changed"):
        checkpoint.newest(folder, pytest.fail)
    assert names(folder) == ["000000005.pt", "000000010.pt"]


def test_every_flipped_bit_and_every_cut_is_found(folder):
    """All bits of the file, and all lengths shorter than it."""
    path = folder / "000000010.pt"
    good = path.read_bytes()
    passed = []
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        passed += [bit] if whole(damaged) else []
    passed += [size for size in range(len(good)) if whole(good[:size])]
    assert passed == []
    assert whole(good)
    assert not whole(good + b"\n")


def whole(data):
    """Whether these bytes pass."""
    try:
        checkpoint._check(io.BytesIO(data))
        return True
    except ValueError:
        return False


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_newest_one_is_put_aside_and_the_one_before_used(folder, seed):
    draw, path = random.Random(seed), folder / "000000010.pt"
    data = bytearray(path.read_bytes())
    if seed == 3:
        data = data[: draw.randrange(len(data))]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    said = []
    used, found = checkpoint.newest(folder, said.append)
    assert (used.name, found["step"]) == ("000000005.pt", 5)
    assert len(said) == 1
    assert said[0].startswith(f"{path} cannot be used (its checksum is wrong")
    assert "\n" not in said[0]
    assert names(folder) == ["000000005.pt", "000000010.damaged"]
    checkpoint.write(folder, 7, content(7), keep=1)
    assert checkpoint.newest(folder, pytest.fail)[1]["step"] == 7


def test_nothing_starts_anew_where_all_are_damaged(folder):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):  # the second time as well
        with pytest.raises(
            UserError, match=r"000000010.pt is no checkpoint .* no older one is whole; delete"
        ) as caught:
            checkpoint.newest(folder, pytest.fail)
        assert "\n" not in str(caught.value)


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


HOSTILE = {
    "os.system": Runs,
    "Namespace": lambda path: argparse.Namespace(lr=1.0),
    "NumPy array": lambda path: np.ones(3),
    "NumPy number": lambda path: np.float64(1.0),
    "path": Path,
    "function": lambda path: shutil.rmtree,
    "module": lambda path: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_tensor_and_no_plain_value_is_refused_and_nothing_runs(kind, tmp_path):
    """With a right checksum: whoever makes such a file can make that too."""
    folder, ran = tmp_path / "checkpoints", tmp_path / "ran"
    checkpoint.write(folder, 5, content(5), keep=2)
    checkpoint.write(folder, 9, content(9) | {"hostile": HOSTILE[kind](ran)}, keep=2)
    said = []
    path, _ = checkpoint.newest(folder, said.append)
    assert path.name == "000000005.pt"
    assert "\n" not in said[0]
    assert not ran.exists()


def test_a_pickle_without_a_wrapping_is_refused(folder):
    data = pickle.dumps(Runs(folder / "ran"), protocol=2)
    mark = b"\nxxh3_128 " + xxhash.xxh3_128_hexdigest(data).encode() + b"\n"
    (folder / "000000011.pt").write_bytes(data + mark)
    assert checkpoint.newest(folder, lambda said: None)[0].name == "000000010.pt"
    assert not (folder / "ran").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("numbers", [150_000, 262_100])
def test_a_full_disk_keeps_the_one_before(small_disk, numbers):
    """The disk gets full among the tensors, or with the last bytes."""
    checkpoint.write(small_disk, 1, {"step": 1, "x": torch.zeros(1000)}, keep=2)
    spent = (small_disk / "spent").write_bytes(bytes(600_000 if numbers < 200_000 else 0))
    with pytest.raises(OSError) as caught:
        checkpoint.write(small_disk, 2, {"step": 2, "x": torch.zeros(numbers)}, keep=2)
    assert (caught.value.errno, spent >= 0) == (errno.ENOSPC, True)
    assert checkpoint.newest(small_disk, pytest.fail)[1]["step"] == 1
    assert names(small_disk) == ["000000001.pt", "spent"]


FOREVER = """
import itertools, pathlib, sys
import torch
from training.saving import checkpoint

folder = pathlib.Path(sys.argv[1])
checkpoint.remove_strays(folder) if folder.exists() else folder.mkdir(parents=True)
found = checkpoint.newest(folder, print)
for step in itertools.count(found[1]["step"] + 1 if found else 1):
    content = {str(part): torch.full((50_000,), float(step)) for part in range(40)} | {"step": step}  # 8 MB
    checkpoint.write(folder, step, content, keep=2)
    print(step, flush=True)
"""


@pytest.mark.timeout(200)
def test_kills_while_saving_lose_nothing_that_was_reported(start_python, tmp_path):
    """A process saves without end and is killed at random moments, several times in the same folder."""
    folder, draw, reported = tmp_path / "checkpoints", random.Random(0), 0
    script = tmp_path / "forever.py"
    script.write_text(FOREVER)
    for _ in range(3):
        (child,) = start_python([script, folder])
        for _ in range(2):
            reported = int(child.stdout.readline())
        time.sleep(draw.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        reported = int([reported, *rest.split()][-1])
        _, found = checkpoint.newest(folder, print)
        step = found.pop("step")
        assert all(bool((part == step).all()) for part in found.values())
        assert step in (reported, reported + 1)
    assert step >= 6
    checkpoint.remove_strays(folder)
    assert len(names(folder)) in (2, 3)  # 3: killed between the newest's name and the oldest's removal


def test_what_torch_says_reaches_no_terminal_with_escape_codes(tmp_path):
    checkpoint.write(tmp_path, 1, {"step": Path("x"), "other": {1, 2}}, keep=1)
    with pytest.raises(ValueError, match="Weights only load failed") as raised:
        checkpoint.read(tmp_path / "000000001.pt")
    assert str(raised.value).isprintable()
