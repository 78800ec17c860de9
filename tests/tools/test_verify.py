"""Verification names every bad sample, of whole files and shards, with and without checksums."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash

from conversion import beton
from conversion.encode import encode_rgb
from ffcv_ops.errors import UserError
from ffcv_ops.storage import index, sources
from tools import verify

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shards(tmp_path, tiles):
    """The pattern of two shards of 20 samples of two levels; every fifth is as small as its smaller level."""
    for shard in range(2):
        samples = []
        for number, tile in enumerate(tiles[20 * shard : 20 * shard + 20]):
            full = encode_rgb(tile, mode="jpg", quality=90)
            half = encode_rgb(np.ascontiguousarray(tile[::2, ::2]), mode="raw", quality=90)
            small = full if number % 5 == 0 else half
            samples.append(((full, small), number % 3))
        path = tmp_path / f"x-{shard:05}-of-00002.beton"
        _, sums = beton.write(path, samples, capacity=20, page_size=2**21, images=("image", "image_50"))
        path.with_suffix(".xxh64").write_bytes(sums.tobytes())
        said = {
            "classes": list("abc"), "shard": shard, "shards": 2, "bytes": path.stat().st_size,
            "index_xxh64": beton.index_checksum(path), "checksums_xxh64": xxhash.xxh64_hexdigest(sums.tobytes()),
        }  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps(said))
        path.with_suffix(".files.txt").write_text("".join(f"train/{shard}/{k}.jpg\n" for k in range(20)))
    return tmp_path / "x-*.beton"


def damage(pattern, sample, level):
    """Flips a bit in the middle of a stored image."""
    known = index.open_index(pattern)
    image = index.column(known, level)[sample]
    size = known.sizes[np.searchsorted(known.places, image["data_ptr"])]
    file = [file for file in known.files if file.start <= image["data_ptr"]][-1]
    with open(file.path, "r+b") as opened:
        place = int(image["data_ptr"]) - file.start + int(size) // 2
        byte = os.pread(opened.fileno(), 1, place)
        os.pwrite(opened.fileno(), bytes([byte[0] ^ 16]), place)


def test_a_sound_one(shards, capsys):
    assert verify.verify(shards, workers=2) == 0
    assert capsys.readouterr().out == f"{shards}: 40 samples at 2 sizes, all decode and have their checksums\n"


def test_every_bad_sample_and_level_is_named(shards, capsys):
    for sample, level in ((3, "image"), (3, "image_50"), (19, "image_50"), (20, "image"), (36, "image")):
        damage(shards, sample, level)
    assert verify.verify(shards, workers=2) == 4
    changed = "is not what was written (its checksum differs)"
    assert capsys.readouterr().out.splitlines() == [
        f"{shards}: sample 3 train/0/3.jpg: image {changed}, image_50 {changed}",
        f"{shards}: sample 19 train/0/19.jpg: image_50 {changed}",
        f"{shards}: sample 20 train/1/0.jpg: image {changed}",
        f"{shards}: sample 36 train/1/16.jpg: image {changed}",
        f"{shards}: 40 samples at 2 sizes, 4 of them bad",
    ]


def test_names_are_read_once(shards, monkeypatch):
    """However many samples are bad."""
    read, source_names = [], sources.source_names
    monkeypatch.setattr(
        sources, "source_names", lambda path: (read.append(name) or name for name in source_names(path))
    )
    for sample in (3, 7, 25, 36):
        damage(shards, sample, "image")
    assert verify.verify(shards, workers=1) == 4
    assert 37 <= len(read) <= 40


def test_labels_without_a_class(shards, capsys):
    for path in shards.parent.glob("*.json"):
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"classes": ["a", "b"]}))
    assert verify.verify(shards, workers=1) == 12
    assert "sample 2 train/0/2.jpg: label 2, but there are 2 classes" in capsys.readouterr().out


def test_a_file_of_stock_ffcv(jpg_beton, raw_beton, tmp_path, capsys):
    """Without checksums, what does not decode is found: zeros from the middle of a JPEG on."""
    assert verify.verify(raw_beton, workers=2) == 0
    assert verify.verify(jpg_beton, workers=2) == 0
    assert f"{jpg_beton}: 96 samples, all decode; there are no checksums" in capsys.readouterr().out
    known, content = index.open_index(jpg_beton), bytearray(jpg_beton.read_bytes())
    for sample in (5, 95):
        place = index.column(known, "image")["data_ptr"][sample]
        number = int(np.searchsorted(known.places, place))
        begin, size = int(known.places[number]), int(known.sizes[number])
        content[begin + size // 2 : begin + size] = bytes(size - size // 2)
    (tmp_path / "copy.beton").write_bytes(content)
    assert verify.verify(tmp_path / "copy.beton", workers=3) == 2
    assert "copy.beton: sample 95: image could not be decoded" in capsys.readouterr().out


def test_a_broken_file_is_refused(shards):
    first = min(shards.parent.glob("*.beton"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        verify.verify(shards, workers=1)


@pytest.mark.parametrize("damaged, status", [(False, 0), (True, 1)])
def test_the_command_line(shards, damaged, status, run_python):
    if damaged:
        damage(shards, 7, "image")
    done = run_python(["write_datasets.py", "--verify", shards])
    assert done.returncode == status
    assert ("train/0/7.jpg" in done.stdout) == damaged
    assert done.stderr == ""


def test_the_command_line_without_such_a_file(tmp_path, run_python):
    done = run_python(["write_datasets.py", "--verify", tmp_path / "no.beton"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
