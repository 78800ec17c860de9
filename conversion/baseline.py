"""What colour alone knows: top-1 of a colour-histogram nearest neighbour, for a small data set in .beton files.

A histogram has BINS x BINS x BINS bins of RGB. Two are alike as their Bhattacharyya coefficient, sum sqrt(p q), says
(Hellinger's distance: of those tried, the best measure). The better of two kinds counts: of the pixels as they are,
and of pixels whose channels are first brought to one mean and deviation, which undoes the light.
"""

from pathlib import Path

import numpy as np

from conversion import beton

BINS = 8
MEAN, DEVIATION = 118, 48  # where a channel is brought to


def histogram_baseline(train: Path, val: Path) -> float:
    """Share of the images of `val` whose nearest neighbour in `train` has their label."""
    known, asked = list(beton.read(train)), list(beton.read(val))
    return max(_nearest_neighbour(known, asked, prepare) for prepare in (_as_it_is, _standardised))


def _nearest_neighbour(known, asked, prepare):
    known_roots, asked_roots = (
        np.stack([np.sqrt(histogram(prepare(rgb))) for rgb, _ in images]) for images in (known, asked)
    )
    known_labels, asked_labels = (np.array([label for _, label in images]) for images in (known, asked))
    nearest = (asked_roots @ known_roots.T).argmax(axis=1)
    return float((known_labels[nearest] == asked_labels).mean())


def histogram(rgb: np.ndarray) -> np.ndarray:
    """Shares of the colours, float32 (BINS ** 3,), of uint8 pixels."""
    red, green, blue = np.moveaxis(rgb.astype(np.int64) * BINS // 256, -1, 0)
    counts = np.bincount(((red * BINS + green) * BINS + blue).ravel(), minlength=BINS**3)
    return (counts / counts.sum()).astype(np.float32)


def _as_it_is(rgb):
    return rgb


def _standardised(rgb):
    mean, deviation = rgb.mean(axis=(0, 1)), rgb.std(axis=(0, 1))
    return np.clip(np.rint((rgb - mean) / np.maximum(deviation, 1) * DEVIATION + MEAN), 0, 255).astype(np.uint8)
