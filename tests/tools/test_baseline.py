"""The histogram baseline on data whose answer is known."""

import numpy as np
import pytest
from PIL import Image

from conversion import beton
from conversion.encode import encode_rgb
from tools.baseline import histogram_baseline, of_channels, of_rgb, of_ycbcr


def stored(path, images):
    samples = (((encode_rgb(rgb, mode="raw", quality=90),), label) for rgb, label in images)
    beton.write(path, samples, capacity=len(images), page_size=beton.MIN_PAGE_SIZE)
    return path


def mosaic(rng, shares):
    """A 20 x 20 picture of black, red and white pixels in these shares, at random places."""
    counts = np.rint(np.array(shares) * 400).astype(int)
    return rng.permutation(np.repeat([(0, 0, 0), (250, 0, 0), (255, 255, 255)], counts, axis=0)).astype(np.uint8)


def test_histograms_are_numpys():
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected, _ = np.histogramdd(rgb.reshape(-1, 3), bins=[np.arange(0, 257, 32)] * 3)
    assert np.allclose(of_rgb(rgb), expected.ravel() / 600)
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    expected, _ = np.histogramdd(ycbcr.reshape(-1, 3), bins=[np.arange(0, 257, 32)] * 3)
    assert np.allclose(of_ycbcr(rgb), expected.ravel() / 600)
    expected = [np.histogram(rgb[..., channel], bins=np.arange(0, 257, 8))[0] for channel in range(3)]
    assert np.allclose(of_channels(rgb), np.concatenate(expected) / 1800)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_colours_are_told_apart_wherever_they_are(rng, tmp_path):
    shares = [(0.5, 0.3, 0.2), (0.2, 0.5, 0.3), (0.3, 0.2, 0.5)]
    images = [(mosaic(rng, shares[k % 3]).reshape(20, 20, 3), k % 3) for k in range(60)]
    train, val = stored(tmp_path / "t.beton", images[:30]), stored(tmp_path / "v.beton", images[30:])
    assert histogram_baseline(train, val) == 1
    wrong = stored(tmp_path / "w.beton", [(rgb, (label + 1) % 3) for rgb, label in images[30:]])
    assert histogram_baseline(train, wrong) == 0


def test_a_change_of_light_is_undone(rng, tmp_path):
    """Bright pixels are half of one class and a tenth of the other; every picture has its own two brightnesses."""

    def picture(k):
        bright = rng.random((20, 20, 1)) < (0.5 if k % 2 else 0.1)
        return (rng.integers(0, 100, 3) + bright * rng.integers(60, 150, 3)).astype(np.uint8), k % 2

    images = [picture(k) for k in range(80)]
    files = stored(tmp_path / "t.beton", images[:60]), stored(tmp_path / "v.beton", images[60:])
    assert histogram_baseline(*files, undo_light=True) > 0.9
    assert histogram_baseline(*files) < 0.8


@pytest.mark.parametrize("undo_light", [False, True])
def test_arrangement_is_invisible(rng, tmp_path, undo_light):
    """Stripes across and stripes down have the same colours: chance is all that is left."""
    across = np.repeat(rng.integers(0, 256, (200, 20, 1, 3), dtype=np.uint8), 20, axis=2)
    images = [(rgb if k % 2 else rgb.swapaxes(0, 1).copy(), k % 2) for k, rgb in enumerate(across)]
    files = stored(tmp_path / "t.beton", images[:100]), stored(tmp_path / "v.beton", images[100:])
    assert 0.35 < histogram_baseline(*files, undo_light=undo_light) < 0.65
