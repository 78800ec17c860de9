"""The view out of a smaller level is the view out of the full one, where the picture can be known at any resolution."""

import io

import numpy as np
import pytest
from PIL import Image

from bench import levels
from ffcv_ops.kernels.crops import View

BOX = View(box_top=31, box_left=67, box_height=150, box_width=90, full_height=40, full_width=40, top=0, left=0)
WHOLE = View(box_top=0, box_left=0, box_height=300, box_width=400, full_height=48, full_width=64, top=0, left=0)


def waves(height, width):
    """A picture of gentle waves, sampled at the centres of height x width pixels."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    planes = [np.sin(5 * y[:, None] + k * x[None]) for k in (4, 5, 6)]
    return Image.fromarray(np.rint(127.5 + 110 * np.stack(planes, -1)).astype(np.uint8))


@pytest.mark.parametrize("view", [BOX, WHOLE])
def test_cut_from_the_full_level_is_crop_and_resize(photos, view):
    full = Image.fromarray(photos["cat"])
    box = (view.box_left, view.box_top, view.box_left + view.box_width, view.box_top + view.box_height)
    expected = full.crop(box).resize((view.full_width, view.full_height), Image.Resampling.BICUBIC)
    assert np.array_equal(levels.cut(view, full, full), np.asarray(expected))


@pytest.mark.parametrize("view", [BOX, WHOLE])
@pytest.mark.parametrize("size", [(256, 192), (160, 120), (171, 128)])
def test_cut_from_a_smaller_level_is_the_same_part(view, size):
    """Waves as seen by levels whose pixels do not line up: half a pixel's shift of the level would change 2 to 4."""
    error = levels.cut(view, waves(*size[::-1]), waves(300, 400)) - levels.cut(view, waves(300, 400), waves(300, 400))
    assert 0 < np.abs(error).mean() < 0.5


def test_downscale_is_that_of_the_scarcer_axis():
    full, level = Image.new("RGB", (400, 300)), Image.new("RGB", (200, 150))
    assert levels.downscale(BOX, full, full) == pytest.approx(90 / 40)
    assert levels.downscale(BOX, level, full) == pytest.approx(45 / 40)


def test_the_smallest_level_with_enough_pixels(photos):
    def stored(*sizes):
        images = [Image.fromarray(photos["cat"]).resize(size, Image.Resampling.BICUBIC) for size in sizes]
        return [levels.Stored(b"", image) for image in images]

    pyramid = stored((400, 300), (200, 150), (120, 90))
    chosen = {size: levels.compare(pyramid, "SRC", size, 0, 1.2)[0] for size in (70, 75, 76, 125, 126)}
    assert [one.level for one in chosen.values()] == [2, 2, 1, 1, 0]
    assert chosen[126] == (0, 0.0, 0.0)
    assert 0 < chosen[75].absolute < 5 and 25 < levels.psnr(chosen[75].square) < 50
    assert len(levels.compare(pyramid, "RRC", 64, 0, 1.2)) == levels.RRC_DRAWS


def test_psnr():
    assert levels.psnr(1.0) == pytest.approx(48.13, abs=0.01)
    assert levels.psnr(100.0) == pytest.approx(28.13, abs=0.01)


def test_pyramids_are_those_of_the_data_set(tmp_path, photos):
    Image.fromarray(photos["cat"]).resize((600, 400)).save(tmp_path / "a.png")
    (pyramid,) = levels.pyramids_of([tmp_path / "a.png"])
    assert [one.pixels.size for one in pyramid] == [(500, 333), (256, 171), (160, 107)]
    assert [Image.open(io.BytesIO(one.data)).size for one in pyramid] == [one.pixels.size for one in pyramid]
