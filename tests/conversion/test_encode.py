"""The levels of a sample against Pillow's own reduction and encoder, from the original."""

import functools

import numpy as np
import pytest
from PIL import Image

from conversion.encode import Encoded, encode_item, encode_rgb
from conversion.sources import read_file

KEYS = {"max_side": None, "min_side": None, "mode": "jpg", "quality": 90}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """a photograph of 451 x 300, one of 100 x 64, which is smaller than some levels, and a thin one."""
    root = tmp_path_factory.mktemp("levels")
    cat = Image.fromarray(photos["cat"])
    cat.save(root / "large.png")
    cat.crop((0, 0, 100, 64)).save(root / "small.png")
    cat.crop((0, 0, 400, 1)).save(root / "thin.png")
    return root


def below(folder):
    return functools.partial(read_file, root=str(folder))


def reduced(folder, name, size):
    with Image.open(folder / name) as image:
        return image.resize(size, Image.Resampling.BICUBIC)


def test_each_level_is_reduced_from_the_original(folder, encode):
    full, middle, small = encode_item("large.png", read=below(folder), **KEYS, levels=(300, 200, 64))
    for found, size, colour in ((full, (300, 200), "4:2:0"), (middle, (200, 133), "4:4:4"), (small, (64, 43), "4:4:4")):
        expected = encode(np.asarray(reduced(folder, "large.png", size)), quality=90, subsampling=colour)
        assert found == Encoded("jpg", size[1], size[0], expected)


def test_the_full_level_is_the_image_without_levels(folder):
    for name in ("large.png", "small.png", "thin.png"):
        single = encode_item(name, read=below(folder), **{**KEYS, "max_side": 300})
        pyramid = encode_item(name, read=below(folder), **{**KEYS, "max_side": 300}, levels=(300, 200, 64))
        assert single == pyramid[:1] and len(pyramid) == 3


def test_limits_and_raw_pixels_at_every_level(folder):
    options = {**KEYS, "min_side": 100, "mode": "raw"}
    full, middle, small = encode_item("large.png", read=below(folder), **options, levels=(300, 200, 64))
    assert [(image.width, image.height) for image in (full, middle, small)] == [(150, 100), (150, 100), (64, 43)]
    assert middle is full, "min_side makes it as small as the level would"
    assert small.data == reduced(folder, "large.png", (64, 43)).tobytes()


def test_levels_that_reduce_nothing(folder):
    full, middle, small = encode_item("small.png", read=below(folder), **KEYS, levels=(300, 200, 64))
    assert (full.width, full.height) == (100, 64) and middle is full
    assert (small.width, small.height) == (64, 41)
    full, middle, small = encode_item("small.png", read=below(folder), **KEYS, levels=(300, 200, 100))
    assert small is middle is full


def test_a_side_never_vanishes(folder):
    images = encode_item("thin.png", read=below(folder), **KEYS, levels=(300, 200, 64))
    assert [(image.width, image.height) for image in images] == [(300, 1), (200, 1), (64, 1)]


def test_arrays_are_samples_of_one_level(photos):
    (image,) = encode_item(photos["cat"], read=np.asarray, mode="jpg", quality=80)
    assert image == encode_rgb(photos["cat"], mode="jpg", quality=80)
