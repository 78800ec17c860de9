"""The bundled photographs: a small real data set out of the pictures inside the scikit-image and scikit-learn wheels.

Each scene is a class and is cut into tiles that share no pixel; every fourth column of tiles is val. Each tile is then
developed in black and white under a light and a tint of its own, so that colour and brightness hardly tell the scene:
texture and shape must. docs/data.md shows the scenes and how much a colour histogram still knows. Out: RGB tiles in
memory, the same on every machine: the arithmetic is exact or correctly rounded (square roots are its only functions).
"""

import importlib.metadata
import importlib.util
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conversion.rgb import read_rgb
from conversion.sources import Source, Split
from ffcv_ops.errors import UserError
from ffcv_ops.rng import RandomKey, uniform

WHEELS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}  # package -> distribution
SCENES = {
    "brick": "skimage/data/brick.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "page": "skimage/data/page.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "text": "skimage/data/text.png",
}
TILE = 36  # pixels: the smallest scenes still give dozens of tiles
VAL_COLUMN, COLUMNS = 2, 4  # columns 2, 6, 10 ... of tiles are val
MOST = {"train": 124, "val": 33}  # tiles per scene, for balance: those with the most detail
LEAST_DETAIL = 4  # standard deviation of the luma: flat sky belongs to no scene

MEAN, DEVIATION = 118, 48  # of each channel of a tile as the camera meters it
MOST_GAIN = 6  # beyond it, noise and JPEG blocks would be all one sees
CONTRAST, BRIGHTNESS, TINT, CURVE = 0.4, 25, 25, 0.8  # half ranges; brightness and tint in gray levels
LIGHT_SEED = 0


class Tile(NamedTuple):
    scene: str
    left: int
    top: int

    @property
    def name(self):
        """The tile's place in the wheels, as a media fragment."""
        return f"{SCENES[self.scene]}#xywh={self.left},{self.top},{TILE},{TILE}"


def photographs() -> Source:
    """Splits `train` and `val`; an item is a tile, uint8 (TILE, TILE, 3)."""
    pictures = {scene: read_rgb(photo_path(file)) for scene, file in SCENES.items()}
    classes, lights, splits = tuple(SCENES), itertools.count(), {}
    for split in MOST:
        tiles = [tile for scene in SCENES for tile in choose(scene, pictures[scene], split)]
        items = [under_light(cut(pictures[tile.scene], tile), next(lights)) for tile in tiles]
        labels = np.array([classes.index(tile.scene) for tile in tiles])
        splits[split] = Split(items, [tile.name for tile in tiles], labels)
    versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in WHEELS.values())
    return Source(f"the photographs in {versions}", classes, splits, np.asarray)


def choose(scene: str, picture: np.ndarray, split: str) -> list[Tile]:
    """The tiles of one scene and split, row by row: of those with enough detail, the MOST detailed."""
    height, width, _ = picture.shape
    tiles = [
        Tile(scene, column * TILE, row * TILE)
        for row in range(height // TILE)
        for column in range(width // TILE)
        if (column % COLUMNS == VAL_COLUMN) == (split == "val")
    ]
    details = {tile: detail(cut(picture, tile)) for tile in tiles}
    ranked = sorted((tile for tile in tiles if details[tile] >= LEAST_DETAIL), key=details.get, reverse=True)
    return sorted(ranked[: MOST[split]], key=tiles.index)


def cut(picture: np.ndarray, tile: Tile) -> np.ndarray:
    return picture[tile.top : tile.top + TILE, tile.left : tile.left + TILE]


def detail(pixels: np.ndarray) -> float:
    """Standard deviation of the luma."""
    luma = pixels.astype(np.int64) @ np.array([299, 587, 114])
    return float(_mean_and_deviation(luma)[1]) / 1000


def under_light(pixels: np.ndarray, number: int) -> np.ndarray:
    """The tile in black and white, as taken by a camera that meters each channel on this tile alone and then, by
    chance, errs: in contrast, brightness, tint and tone curve. `number` picks the chances; uint8 in and out."""
    key = RandomKey(LIGHT_SEED, number)
    contrast, brightness, curve, *tint = (2 * uniform(key, stream) - 1 for stream in range(6))
    red, green, blue = (_metered(pixels[..., channel]) for channel in range(3))
    luma = (0.299 * red + 0.587 * green + 0.114 * blue) * (1 + CONTRAST * contrast)
    developed = np.empty(pixels.shape)
    for channel in range(3):
        values = np.clip(luma + (MEAN + BRIGHTNESS * brightness + TINT * tint[channel]), 0, 255)
        developed[..., channel] = values + CURVE * curve * values * (255 - values) / 255
    return np.rint(developed).astype(np.uint8)


def _metered(channel: np.ndarray) -> np.ndarray:
    """Mean 0, and deviation DEVIATION if MOST_GAIN reaches it."""
    values = channel.astype(np.int64)
    mean, deviation = _mean_and_deviation(values)
    return (values - mean) * min(DEVIATION / max(deviation, 1e-9), MOST_GAIN)


def _mean_and_deviation(values: np.ndarray):
    """Of whole numbers, summed exactly: float sums would depend on the machine's vector width."""
    count, total, squares = values.size, int(values.sum()), int((values * values).sum())
    return total / count, np.sqrt(count * squares - total * total) / count


def photo_path(file: str) -> Path:
    """The file inside the installed packages."""
    package, _, inside = file.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / inside if spec else None
    if path is None or not path.is_file():
        raise UserError(f"{file} is missing; the bundled photographs come with pip install {' '.join(WHEELS.values())}")
    return path
