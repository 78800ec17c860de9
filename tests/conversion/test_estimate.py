"""The planner's sizes against a conversion; its choice against tables made by hand."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import write_datasets
from bench.dataset import write_images
from conversion import estimate
from conversion.encode import ImageConfig
from conversion.estimate import Row
from conversion.sources import open_source
from ffcv_ops.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COUNT = 200
TOLERANCE = 0.01
IMAGE = ImageConfig()
SETTINGS = (
    {"max_side": 320, "quality": 80},
    {"max_side": 500, "passthrough": False, "quality": 80},
    {"max_side": 500, "levels": (500, 256, 160)},
    {"max_side": 256, "mode": "raw"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of 500 pixels."""
    root = tmp_path_factory.mktemp("estimate") / "photos"
    write_images(root, {"train": COUNT})
    return root


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(estimate, "CANDIDATES", SETTINGS)
    monkeypatch.setattr(estimate, "SECONDS", 0.05)


def test_predicted_size_is_that_of_the_conversion(folder, tmp_path, monkeypatch, quick):
    """Half of the images tells the bytes of all within the printed ±, and the files within TOLERANCE more: half of a
    page for each level that ends in one."""
    monkeypatch.setattr(estimate, "_loading", lambda *_: 1.0)
    source, page_size = open_source(str(folder)), write_datasets.FOLDER_PAGE_SIZE
    rows = estimate.measure(source, IMAGE, None, images=COUNT // 2, page_size=page_size)
    assert [row.changes for row in rows] == list(SETTINGS)
    for number, row in enumerate(rows):
        words = [f"--data.source={folder}", f"--data.out={tmp_path / str(number)}", *estimate.words_of(row.changes)]
        done = subprocess.run([sys.executable, ROOT / "write_datasets.py", *words], capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr
        stored = json.loads((tmp_path / f"{number}_train.json").read_text())["stored"]
        images = sum(level["bytes"] for level in stored.values())
        assert abs(COUNT * row.size - images) < COUNT * row.size_error < 0.1 * images
        files = sum((tmp_path / f"{number}_train{end}").stat().st_size for end in (".beton", ".xxh64"))
        error = abs(estimate.total_bytes(row, COUNT, page_size) - files)
        assert error < COUNT * row.size_error + len(stored) * page_size / 2 + TOLERANCE * images


def test_the_sample_is_spread_and_fixed(folder):
    """Each image at most once, of both splits by their shares, the same every time."""
    train = open_source(str(folder)).splits["train"]
    val = train._replace(items=[f"val {k}" for k in range(50)])
    both = open_source(str(folder))._replace(splits={"train": train, "val": val})
    sample = estimate._sample(both, 50)
    assert sample == estimate._sample(both, 50) and len(set(sample)) == 50
    assert sum(item.startswith("val") for item in sample) == 10
    places = [list(train.items).index(item) for item in sample[:40]]
    assert all(5 * k <= place < 5 * (k + 1) for k, place in enumerate(places))
    assert len(estimate._sample(both, 10_000)) == 250


CHOICE = [
    Row({"max_side": 500}, 1e5, 1e3, 900.0, 100.0, 100.0, 0),
    Row({"max_side": 500, "passthrough": False}, 1e5, 1e3, 90.0, 100.0, 100.0, 0),
    Row({"max_side": 500, "passthrough": False, "quality": 80}, 1e5, 1e3, 90.0, 100.0, 100.0, 0),
    Row({"max_side": 256}, 1e5, 1e3, 100.0, 100.0, 100.0, 0),
    Row({"max_side": 500, "levels": (500, 256)}, 1e5, 1e3, 80.0, 100.0, 100.0, 0),
    Row({"max_side": 500, "mode": "raw"}, 1e5, 1e3, 1000.0, 100.0, 100.0, 0),
]
SIZES = 10, 7, 6, 3, 16, 120


@pytest.mark.parametrize(
    ("speeds", "disk", "best"),
    [
        ((100, 110, 130, 200, 95, 300), 1000, 5),  # raw is fastest and fits
        ((100, 110, 130, 200, 95, 300), 100, 0),  # the others load alike and are written more slowly
        ((100, 150, 130, 200, 95, 300), 100, 1),
        ((100, 110, 130, 200, 160, 300), 100, 4),
        ((100, 110, 130, 200, 95, 108), 1000, 0),  # raw pixels that the disk does not feed
        ((100, 110, 130, 200, 95, 300), 9, 1),  # rather a second JPEG loss than less quality
        ((100, 110, 130, 200, 95, 300), 6, 2),  # rather less quality than fewer pixels
        ((100, 110, 130, 200, 95, 300), 3, 3),
        ((100, 110, 130, 200, 95, 300), 2, None),
    ],
)
def test_choice(speeds, disk, best):
    assert estimate.recommended(CHOICE, IMAGE, SIZES, speeds, disk) == best


def test_the_disk_bounds_what_cores_load():
    row = CHOICE[0]._replace(size=1e6, loading=500.0)
    small, large = 1e9, psutil.virtual_memory().total + 1.0
    assert estimate.loading_speed(row, small, cores=16, read=2e9) == 8000
    assert estimate.loading_speed(row, large, cores=16, read=2e9) == 2000
    assert estimate.loading_speed(row, large, cores=2, read=2e9) == 1000


def test_sizes_in_words():
    assert estimate.bytes_of("500GB", "x") == 5e11 and estimate.bytes_of("1.5 tb", "x") == 1.5e12
    assert estimate.bytes_of("1000", "x") == 1000
    for text in ("much", "-1GB", "1GiB", "GB"):
        with pytest.raises(UserError, match=r"x is .*; it must be a size such as 500GB"):
            estimate.bytes_of(text, "x")


def test_the_command(folder, monkeypatch, capsys, quick, tmp_path):
    """The whole of --estimate: a table, and a command line that keeps what was given and can be run."""
    words = ["--estimate", f"--data.source={folder}", f"--data.out={tmp_path}/a b", "--data.on_error=skip"]
    words += ["--image.max_side=400", "--estimate.disk=14MB", "--estimate.cores=16", "--estimate.images=40"]
    monkeypatch.setattr(sys, "argv", ["write_datasets.py", *words])
    write_datasets.main()
    shown = capsys.readouterr().out
    assert "Predicted: 200 images, 14 MB of disk, 16 cores" in shown and "levels=500,256,160" in shown
    command = shlex.split(shown.strip().splitlines()[-1])
    assert command[:4] == ["python", "write_datasets.py", f"--data.source={folder}", f"--data.out={tmp_path}/a b"]
    assert command[4:] == ["--data.on_error=skip", "--image.max_side=320", "--image.quality=80"]
    assert list(tmp_path.iterdir()) == []


def test_nothing_fits_and_nothing_can_be_stored(folder, monkeypatch, capsys, quick, tmp_path):
    monkeypatch.setattr(estimate, "_loading", lambda *_: 1.0)
    words = ["--estimate", f"--data.source={folder}", "--estimate.disk=1MB", "--estimate.images=8"]
    monkeypatch.setattr(sys, "argv", ["write_datasets.py", *words])
    write_datasets.main()
    assert "Nothing fits into 1 MB; the least is " in capsys.readouterr().out
    source = open_source(str(folder))
    broken = source._replace(read=lambda item: b"no image")
    with pytest.raises(UserError, match="0 of 8 sampled images can be stored"):
        estimate.measure(broken, IMAGE, None, images=8, page_size=2**21)


def test_rows_report_what_is_refused(folder, monkeypatch, quick):
    monkeypatch.setattr(estimate, "_loading", lambda *_: 1.0)
    source = open_source(str(folder))
    items = estimate._sample(source, 20)
    partly = source._replace(read=lambda item: b"no image" if item in items[:3] else source.read(item))
    rows = estimate.measure(partly, dataclasses.replace(IMAGE, quality=95), None, images=20, page_size=2**21)
    assert {row.refused for row in rows} == {3} and all(np.isfinite(row.size) for row in rows)
