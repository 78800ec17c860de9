"""The bundled photographs: where the tiles come from, that train and val share nothing, what the light does."""

import collections
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image, features

from conversion import photos
from conversion.photos import TILE, Tile, choose, photographs, under_light
from ffcv_ops.errors import UserError
from ffcv_ops.rng import RandomKey, uniform

SITE = Path(skimage.__file__).parents[1]


@pytest.fixture(scope="module")
def source():
    return photographs()


def boxes(split):
    """(file, left, top, width, height) of each recorded name."""
    for name in split.names:
        file, *numbers = re.fullmatch(r"(.+)#xywh=(\d+),(\d+),(\d+),(\d+)", name).groups()
        yield file, *map(int, numbers)


def test_no_pixel_is_used_twice(source):
    """By the recorded boxes: within each photograph every pixel belongs to one tile of one split at most."""
    used = collections.defaultdict(lambda: np.zeros((2000, 2000), int))
    for split in source.splits.values():
        for file, left, top, width, height in boxes(split):
            used[file][top : top + height, left : left + width] += 1
    assert {int(counts.max()) for counts in used.values()} == {1}
    tiles = sum(len(split.names) for split in source.splits.values())
    assert sum(int(counts.sum()) for counts in used.values()) == tiles * TILE**2


def test_boxes_lie_in_their_photographs(source):
    for split in source.splits.values():
        for (file, left, top, width, height), label in zip(boxes(split), split.labels, strict=True):
            assert photos.SCENES[source.classes[label]] == file
            size = Image.open(SITE / file).size
            assert left + width <= size[0] and top + height <= size[1]


def test_how_many(source):
    train, val = (np.bincount(source.splits[name].labels, minlength=len(source.classes)) for name in ("train", "val"))
    assert len(source.classes) >= 10
    assert 1400 <= train.sum() <= 1600 and 380 <= val.sum() <= 420
    assert (train >= 36).all() and (val >= 10).all()
    assert (train == photos.MOST["train"]).sum() >= 8, "most scenes have an equal number of tiles"


def test_tiles_are_the_photographs_under_a_light(source):
    """Every item against a transcription of the rule that reads the photographs itself."""
    pictures = {file: np.asarray(Image.open(SITE / file).convert("RGB")) for file in photos.SCENES.values()}
    number = 0
    for split in source.splits.values():
        for item, (file, left, top, width, height) in zip(split.items, boxes(split), strict=True):
            contrast, brightness, curve, *tint = (
                uniform(RandomKey(photos.LIGHT_SEED, number), stream) for stream in range(6)
            )
            tile = pictures[file][top : top + height, left : left + width].astype(float)
            gain = np.minimum(48 / np.maximum(tile.std((0, 1)), 1e-9), 6)
            seen = (tile - tile.mean((0, 1))) * gain
            gray = np.broadcast_to((seen @ [0.299, 0.587, 0.114])[..., None], seen.shape)
            seen = gray * (0.6 + 0.8 * contrast)
            offset = 118 + 25 * (2 * brightness - 1) + 25 * (2 * np.array(tint) - 1)
            seen = np.clip((seen + offset) / 255, 0, 1)
            seen = 255 * (seen + 0.8 * (2 * curve - 1) * seen * (1 - seen))
            assert np.abs(item - seen).max() <= 0.5 + 1e-6
            number += 1


def test_the_light_hides_the_colours():
    """Two tiles of one structure in different colours look alike up to chance; brighter and darker does not matter."""
    structure = np.random.default_rng(0).integers(0, 100, (TILE, TILE, 1))
    red = (structure + np.array([100, 20, 0])).astype(np.uint8)
    blue = (structure + np.array([0, 40, 150])).astype(np.uint8)
    assert np.array_equal(under_light(red, 7), under_light(blue, 7))
    lights = np.array([under_light(red, number).mean((0, 1)) for number in range(200)])
    assert (lights.std(0) > 15).all() and (np.abs(lights.mean(0) - 118) < 6).all()


def test_flat_tiles_are_left_out():
    """A picture that is flat but for one tile of noise, and a faint one."""
    picture = np.full((TILE * 2, TILE * 3, 3), 90, np.uint8)
    rng = np.random.default_rng(0)
    picture[TILE:, :TILE] = rng.integers(0, 256, (TILE, TILE, 3))
    picture[:TILE, TILE : 2 * TILE] += rng.integers(0, 4, (TILE, TILE, 1), dtype=np.uint8)
    assert choose("brick", picture, "train") == [Tile("brick", 0, TILE)]


def test_the_same_on_every_machine(source):
    """Tiles as pixels. The digests were taken once; with another JPEG decoder three of the photographs may differ."""
    if features.version("libjpeg_turbo") is None:
        pytest.skip("Pillow was built with another JPEG library")
    digests = {
        name: hashlib.sha256(np.stack(split.items).tobytes()).hexdigest()[:16] for name, split in source.splits.items()
    }
    assert digests == {"train": "c5b45ebcd564817f", "val": "5ca6aa0255da84fb"}


def test_missing_wheels(monkeypatch):
    for file in ("skimage/data/no such file.png", "no_such_package/data/brick.png"):
        monkeypatch.setitem(photos.SCENES, "brick", file)
        with pytest.raises(UserError, match=r"is missing; .* pip install scikit-image scikit-learn"):
            photographs()
