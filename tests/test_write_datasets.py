"""The command itself: its answers, its exit status, and what is left when it is killed."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from conversion import beton
from conversion.shard_writer import CHUNK
from tools.baseline import histogram_baseline

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, str(ROOT / "write_datasets.py")]
LEVELS = ("image", "image_24")
PHOTOS_SHA256 = {
    "train": "a88ec32e79024b5c81590504312104828b48247af4461f267fe0bed7e7b7bbb6",
    "val": "9e1cd2e53788f99ae4475b798719090b2b4df5d7b7d977962c673b6471d5577b",
}


def run(folder, *words, **options):
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=100, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """in/train and in/val with two classes of two pictures."""
    root = tmp_path_factory.mktemp("folder")
    for number, name in enumerate(("train/a/1", "train/a/2", "train/b/1", "train/b/2", "val/a/1", "val/b/1")):
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (600, 900, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "in" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    return folder / "data", run(folder, "--data.workers=2")


def test_bundled_photographs(bundled):
    data, done = bundled
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in data.iterdir()) == [
        f"photos_{split}.{end}" for split in ("train", "val") for end in ("beton", "files.txt", "json", "xxh64")
    ]
    lines = done.stdout.splitlines()
    for line, split, low, high in zip(lines, ("train", "val"), (1400, 380), (1600, 420), strict=True):
        count = int(re.match(rf"data/photos_{split}.beton: ([\d,]+) images of 15 classes, ", line)[1].replace(",", ""))
        assert low <= count <= high
        assert sum(1 for _ in beton.read(data / f"photos_{split}.beton")) == count


def test_photographs_are_the_same_bytes_every_time(bundled, tmp_path):
    """With one worker and two; and as written once, when this Pillow has the same JPEG encoder."""
    data, _ = bundled
    assert run(tmp_path, "--data.workers=1").returncode == 0
    for file in data.iterdir():
        assert file.read_bytes() == (tmp_path / "data" / file.name).read_bytes()
    if features.version("libjpeg_turbo") == "3.2.0":
        betons = {split: (data / f"photos_{split}.beton").read_bytes() for split in ("train", "val")}
        digests = {split: hashlib.sha256(content).hexdigest() for split, content in betons.items()}
        assert digests == PHOTOS_SHA256


def test_a_histogram_knows_little_of_the_photographs(bundled):
    """Far below what a small ViT learns; of 15 scenes a guess would hit one in 12."""
    data, _ = bundled
    files = data / "photos_train.beton", data / "photos_val.beton"
    assert 0.2 < histogram_baseline(*files) < 0.35
    assert 0.2 < histogram_baseline(*files, undo_light=True) < 0.46


def test_folder(folder, tmp_path):
    done = run(folder, "--data.source=in", f"--data.out={tmp_path}/deep/er/x", "--data.workers=1")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "deep" / "er"
    samples = list(beton.read(out / "x_train.beton"))
    assert [label for _, label in samples] == [0, 0, 1, 1]
    assert {rgb.shape for rgb, _ in samples} == {(333, 500, 3)}
    assert json.loads((out / "x_val.json").read_text())["settings"] == {
        "on_error": "stop",
        "page_size": 2**23,
        "max_side": 500,
        "levels": None,
        "min_side": None,
        "quality": 90,
        "passthrough": True,
        "mode": "jpg",
    }


def test_keys_reach_the_images(folder, tmp_path):
    words = ("--image.max_side=none", "--image.min_side=32", "--image.mode=raw")
    done = run(folder, "--data.source=in", f"--data.out={tmp_path}/x", *words)
    assert done.returncode == 0, done.stderr
    for rgb, name in zip((rgb for rgb, _ in beton.read(tmp_path / "x_val.beton")), ("a", "b"), strict=True):
        picture = Image.open(folder / "in" / "val" / name / "1.png")
        assert np.array_equal(rgb, np.asarray(picture.resize((48, 32), Image.Resampling.BICUBIC)))


def test_levels(folder, tmp_path):
    """A pyramid of one level is the file without one, with its max_side or by itself."""
    words = {
        "single": ["--image.max_side=64"],
        "alone": ["--image.levels=64"],
        "both": ["--image.levels=64", "--image.max_side=64"],
        "pyramid": ["--image.levels=[64, 24]"],
    }
    content = {}
    for name, given in words.items():
        done = run(folder, "--data.source=in", f"--data.out={tmp_path}/{name}", *given)
        assert done.returncode == 0, done.stderr
        content[name] = (tmp_path / f"{name}_train.beton").read_bytes()
    assert content["single"] == content["alone"] == content["both"] != content["pyramid"]
    settings = json.loads((tmp_path / "pyramid_val.json").read_text())["settings"]
    assert (settings["levels"], settings["max_side"]) == ([64, 24], 64)
    shapes = [{rgb.shape for rgb, _ in beton.read(tmp_path / "pyramid_train.beton", name)} for name in LEVELS]
    assert shapes == [{(43, 64, 3)}, {(16, 24, 3)}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.sorce=in"], "--data.sorce is not an option; the nearest is --data.source"),
        (["--data.on_error=ignore"], "--data.on_error is 'ignore'; it must be one of stop, skip"),
        (["--data.workers=0"], "--data.workers is '0'; it must be a whole number at least 1 and at most 1,024 or auto"),
        (["--image.quality=90.5"], "--image.quality is '90.5'; it must be a whole number"),
        (["--image.levels=64,x"], "--image.levels is '64,x'; it must be a list, each a whole number at least 1"),
        (["--image.levels=64,0"], "--image.levels is '64,0'; it must be a list, each a whole number at least 1"),
        (["--image.levels="], "--image.levels is empty; give it a value or leave it out"),
        (["--image.levels=99999"], "--image.levels is '99999'; it must be a list, each a whole number at least 1"),
        (["--image.levels=64,80"], "--image.levels is 64,80; each level must be smaller than the one before"),
        (["--image.levels=64,64"], "--image.levels is 64,64; each level must be smaller than the one before"),
        (
            ["--image.levels=64,32", "--image.max_side=500"],
            "--image.max_side is 500, --image.levels begins with 64; give levels alone",
        ),
        (["--image.levels=64,32"], "--image.levels: the bundled photographs keep their size"),
        (["--data.classes=imagenet1k"], "--data.classes: the bundled photographs have theirs; it needs a"),
        (["--data.label=coarse"], "--data.label: the bundled photographs have theirs; it needs a --data.source"),
        (["--data.source=gone"], "/gone is not a folder"),
        (["--data.source=in", "--data.out=in/train/a/1.png/x"], "x_train.beton cannot be written: "),
    ],
)
def test_bad_input_is_one_line(folder, words, message, run_python):
    done = run_python([ROOT / "write_datasets.py", *words], cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert done.stdout == ""


def test_a_disk_that_takes_no_more(folder, tmp_path):
    """A limit on the size of a file, which the system enforces, stands for the disk."""
    import resource

    done = run(
        folder,
        "--data.source=in",
        f"--data.out={tmp_path}/x",
        "--image.mode=raw",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**23 + 100_000, 2**23 + 100_000)),
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*x_train\.beton cannot be written: File too large\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def processes_of(session):
    """{process id: parent's} of the living processes of a session."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


@pytest.fixture
def long_run(folder, tmp_path):
    """A conversion of some minutes in a session of its own, once its file grows."""
    many = tmp_path / "in" / "train" / "a"
    many.mkdir(parents=True)
    for number in range(3000):
        os.link(folder / "in" / "train" / "a" / "1.png", many / f"{number}.png")
    words = ("--data.source=in", "--data.out=out/x", "--data.workers=2")
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    partial = tmp_path / "out" / "x_train.beton.partial"
    while not (partial.exists() and partial.stat().st_size > 2**23):  # where the images begin
        assert process.poll() is None
        time.sleep(0.05)
    yield process, tmp_path / "out"
    for member in processes_of(process.pid):
        os.kill(member, signal.SIGKILL)
    process.communicate()


def assert_no_process_stays(session):
    deadline = time.monotonic() + 10
    while processes_of(session):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def lines_of(process):
    """Without those of progress, which a slow machine prints."""
    return [line for line in process.stderr.read().splitlines() if not line.endswith(" left")]


def shared_memory():
    return {file.name for file in Path("/dev/shm").iterdir() if file.name.startswith(("sem.mp-", "psm_", "pymp-"))}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("everyone", [False, True])
def test_killed(long_run, everyone):
    """The command alone, or its whole session at once."""
    process, out = long_run
    before = shared_memory()
    (os.killpg if everyone else os.kill)(process.pid, signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    assert_no_process_stays(process.pid)
    assert sorted(file.name for file in out.iterdir()) == [
        f"x_train.{end}" for end in ("beton.partial", "journal.partial", "unfinished")
    ]
    assert not shared_memory() - before


@pytest.mark.timeout(90)
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(long_run, blow):
    """Ctrl-C reaches the whole session, as on a terminal; SIGTERM the command."""
    process, out = long_run
    (os.killpg if blow == signal.SIGINT else os.kill)(process.pid, blow)
    assert process.wait(10) == 130
    assert_no_process_stays(process.pid)
    kept = "no images of out/x_train.beton are finished yet; the same command starts over"
    assert lines_of(process) == [f"interrupted; {kept}"]
    assert list(out.iterdir()) == []


@pytest.mark.timeout(90)
def test_two_at_once(long_run):
    process, out = long_run
    other = run(out.parent, "--data.source=in", "--data.out=out/x", "--data.workers=1")
    assert other.returncode == 2
    assert other.stderr == "error: out/x_train.beton is being written by another process; wait for it, or stop it\n"
    assert process.poll() is None


@pytest.fixture(scope="module")
def small_pictures(folder, tmp_path_factory):
    """11,000 names of one small JPEG, and what an unbroken conversion makes of them."""
    root = tmp_path_factory.mktemp("small")
    (root / "in" / "train" / "a").mkdir(parents=True)
    Image.open(folder / "in" / "train" / "a" / "1.png").resize((24, 16)).save(root / "0.jpg")
    for number in range(11_000):
        os.link(root / "0.jpg", root / "in" / "train" / "a" / f"{number:05}.jpg")
    assert run(root, "--data.source=in", "--data.out=whole/x").returncode == 0
    return root


@pytest.mark.timeout(120)
def test_a_stop_in_val_does_not_begin_train_again(folder, tmp_path):
    """Here val has an image that is none. The files of train stay as they are until all is done."""
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(folder / "in", source)
    bad = next((source / "val").rglob("*.*"))
    sound = bad.read_bytes()
    bad.write_bytes(b"no picture")
    words = (f"--data.source={source}", f"--data.out={out}/x")
    stopped = run(folder, *words)
    assert stopped.returncode == 2 and bad.name in stopped.stderr
    assert (out / "x_train.unfinished").exists()
    before = (out / "x_train.beton").stat()
    bad.write_bytes(sound)
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"x_train\.beton: .* MB, finished before\n.*x_val\.beton: .* images/s\n", done.stdout)
    assert (out / "x_train.beton").stat().st_ino == before.st_ino
    assert json.loads((out / "x_val.json").read_text())["samples"] == 2
    assert not [file for file in out.iterdir() if file.suffix == ".unfinished"]
    assert "finished before" not in run(folder, *words).stdout, "a complete conversion is begun anew"


@pytest.mark.timeout(120)
def test_goes_on_after_a_kill(small_pictures, tmp_path):
    """From the finished chunks on, to the same bytes; other settings are refused, and nothing is lost by that."""
    words = ("--data.source=in", f"--data.out={tmp_path}/x")
    process = subprocess.Popen([*COMMAND, *words, "--data.workers=1"], cwd=small_pictures, stderr=subprocess.DEVNULL)
    journal = tmp_path / "x_train.journal.partial"
    while not (journal.exists() and journal.stat().st_size):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    refused = run(small_pictures, *words, "--image.quality=80")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "x_train.unfinished: an unfinished conversion has quality 90 instead of 80; repeat that" in refused.stderr
    done = run(small_pictures, *words)
    assert done.returncode == 0, done.stderr
    kept = re.search(r"x_train.beton: continues behind the ([\d,]+) of 11,000 images that are finished", done.stderr)[1]
    assert int(kept.replace(",", "")) % CHUNK == 0
    whole = small_pictures / "whole"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in whole.iterdir())
    for file in whole.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


@pytest.mark.timeout(120)
def test_shards(small_pictures, tmp_path):
    """Three files, which together are the whole one."""
    done = run(small_pictures, "--data.source=in", f"--data.out={tmp_path}/x", "--data.shards=3")
    assert done.returncode == 0, done.stderr
    assert "x_train-*.beton: 11,000 images of 1 classes in 3 shards, " in done.stdout
    names = [f"x_train-0000{k}-of-00003" for k in range(3)]
    assert sorted({file.name.split(".")[0] for file in tmp_path.iterdir()}) == names
    lists = [(tmp_path / f"{name}.files.txt").read_text() for name in names]
    assert "".join(lists) == (small_pictures / "whole" / "x_train.files.txt").read_text()
    sums = [(tmp_path / f"{name}.xxh64").read_bytes() for name in names]
    assert b"".join(sums) == (small_pictures / "whole" / "x_train.xxh64").read_bytes()
    described = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
    assert [(one["shard"], one["shards"], one["samples"]) for one in described] == [
        (0, 3, 3666),
        (1, 3, 3667),
        (2, 3, 3667),
    ]
    other = run(small_pictures, "--data.source=in", f"--data.out={tmp_path}/x", "--data.shards=2")
    assert other.returncode == 2
    assert "x_train-00000-of-00003.beton is one of 3 shards, not of 2; remove those first" in other.stderr
    small = run(small_pictures, "--data.source=in", f"--data.out={tmp_path}/y", "--data.shards=auto")
    assert small.returncode == 0 and (tmp_path / "y_train.beton").exists(), "far less than a shard is one file"


@pytest.mark.timeout(200)
def test_memory_does_not_grow_with_the_data(small_pictures, tmp_path):
    """Peak memory of the writing process, which alone sees all images: the tables take 56 bytes for each, the names of
    a folder about 150 (they are in Python's memory)."""
    few = tmp_path / "in" / "train" / "a"
    few.mkdir(parents=True)
    for number in range(1000):
        os.link(small_pictures / "0.jpg", few / f"{number:05}.jpg")
    peaks = {}
    for name, root in (("few", tmp_path), ("many", small_pictures)):
        words = ("--data.source=in", f"--data.out={tmp_path}/{name}")
        process = subprocess.Popen([*COMMAND, *words], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks[name] = 1024 * usage.ru_maxrss
    assert peaks["many"] - peaks["few"] < 10_000 * 600


@pytest.mark.timeout(90)
def test_a_killed_worker_ends_the_run(long_run):
    process, out = long_run
    members = processes_of(process.pid)
    worker = next(member for member, parent in members.items() if parent in members and parent != process.pid)
    os.kill(worker, signal.SIGKILL)
    assert process.wait(20) == 2
    assert_no_process_stays(process.pid)
    (line,) = lines_of(process)
    assert line.startswith("error: a worker process died")
    assert list(out.iterdir()) == []
