"""A baseline that sees color alone: top-1 of a color-histogram nearest neighbour on a small data set in .beton files.

A histogram counts the pixels in 8 x 8 x 8 boxes of RGB or of YCbCr, or in 32 ranges of each channel of RGB. The
similarity of two histograms p and q is sum sqrt(p q) (Hellinger's distance). These are the strongest of some dozens
that were tried on the bundled photographs; the best of the three counts.

    python -m tools.baseline data/photos_train.beton data/photos_val.beton --log runs/demo/log.jsonl
"""

import argparse
from pathlib import Path

from config.parser import Parser
from ffcv_ops.errors import UserError, exits_cleanly


def parse(argv=None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("train", type=Path, help=".beton of the known images")
    parser.add_argument("val", type=Path, help=".beton of the images to name")
    parser.add_argument("--log", type=Path, help="log.jsonl of a run on the same data, for comparison")
    return parser.parse_args(argv)


if __name__ == "__main__":  # --help and mistakes are answered here: the imports below take seconds
    exits_cleanly(parse)()

import numpy as np
from PIL import Image

from conversion import beton
from ffcv_ops.storage.index import describe
from training.logging.records import read_rows

MEAN, DEVIATION = 118, 48  # of a channel whose light is undone; the choice hardly matters


def histogram_baseline(train: Path, val: Path, *, undo_light: bool = False) -> float:
    """Share of the images of `val` whose nearest neighbour in `train` has their label, by the best of the histograms.

    undo_light: first bring each channel of each image to one mean and deviation.
    """
    prepare = _undo_light if undo_light else np.asarray
    references, queries = ([(prepare(rgb), label) for rgb, label in beton.read(path)] for path in (train, val))
    return max(_nearest_neighbour(references, queries, histogram) for histogram in (of_rgb, of_ycbcr, of_channels))


def _nearest_neighbour(references, queries, histogram):
    reference_roots, query_roots = (
        np.stack([np.sqrt(histogram(rgb)) for rgb, _ in images]) for images in (references, queries)
    )
    reference_labels, query_labels = (np.array([label for _, label in images]) for images in (references, queries))
    nearest = (query_roots @ reference_roots.T).argmax(axis=1)
    return float((reference_labels[nearest] == query_labels).mean())


def of_rgb(pixels: np.ndarray) -> np.ndarray:
    """Shares of the 512 boxes, float32, of uint8 pixels (height, width, 3)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64) // 32, -1, 0)
    return _shares(64 * red + 8 * green + blue, 512)


def of_ycbcr(pixels: np.ndarray) -> np.ndarray:
    return of_rgb(np.asarray(Image.fromarray(pixels).convert("YCbCr")))


def of_channels(pixels: np.ndarray) -> np.ndarray:
    """Shares of the 3 x 32 ranges, float32."""
    return _shares(pixels.astype(np.int64) // 8 + [0, 32, 64], 96)


def _shares(boxes, count):
    return (np.bincount(boxes.ravel(), minlength=count) / boxes.size).astype(np.float32)


def _undo_light(rgb):
    mean, deviation = rgb.mean(axis=(0, 1)), rgb.std(axis=(0, 1))
    return np.clip(np.rint((rgb - mean) / np.maximum(deviation, 1) * DEVIATION + MEAN), 0, 255).astype(np.uint8)


@exits_cleanly
def main(argv=None):
    options = parse(argv)
    for path in (options.train, options.val):
        describe(path)  # refuses in one line what is no .beton
    print(f"top-1 on {options.val}:")
    if options.log:
        found = [row["top1"] for row in read_rows(options.log) if row["kind"] == "epoch" and "top1" in row]
        if not found:
            raise UserError(f"{options.log}: no evaluation is logged there")
        print(f"  {100 * found[-1]:5.2f} %  the model of {options.log.parent}")
    for undo_light, words in ((False, ""), (True, ", each tile's light undone")):
        top1 = histogram_baseline(options.train, options.val, undo_light=undo_light)
        print(f"  {100 * top1:5.2f} %  nearest neighbour by color histogram{words}")


if __name__ == "__main__":
    main()
