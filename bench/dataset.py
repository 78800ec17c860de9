"""A folder of JPEGs that are to a loader what ImageNet's are after the usual conversion, and .beton files of it.

500 pixels on the longer side, quality 90, 4:2:0, 40-50 KB on average. They are windows of the photographs in the
scikit-image and scikit-learn wheels, hardly ever enlarged, so that they have a photograph's detail. The same bytes on
every machine with the same Pillow.
"""

import hashlib
import importlib.metadata
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.processes import ROOT
from bench.writers import QUALITY, by_ffcv
from conversion.photos import photo_path
from conversion.rgb import read_rgb

PHOTOS = {
    "astronaut": "skimage/data/astronaut.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
}
LONGEST = 500
SHAPES = {  # (width, height): share. Most of ImageNet's pictures are 4:3 and 3:2, and most of these lie
    (500, 375): 46,
    (500, 333): 20,
    (375, 500): 14,
    (333, 500): 6,
    (500, 400): 4,
    (500, 500): 5,
    (500, 281): 5,
}
SMALLEST_WINDOW = 0.6  # of the largest one with the image's shape
LEAST_SCALE = 0.85  # pixels of the photograph per pixel of the image, where the photograph has that many


class Dataset(NamedTuple):
    """`files` of a split are sorted; `betons` are paths, or the reason why there is none."""

    folder: Path
    files: dict[str, list[Path]]
    betons: dict[str, Path | str]

    @property
    def mean_bytes(self) -> float:
        return float(np.mean([file.stat().st_size for files in self.files.values() for file in files]))


def make(folder: Path, betons: set[str], *, train: int, val: int) -> Dataset:
    """The dataset in `folder` with these .beton files. What is there is used unless what it was made of has changed."""
    stamp, key = folder / "stamp.json", _key(train, val)
    made = json.loads(stamp.read_text()) if stamp.exists() else None
    if made is None or made["key"] != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_images(folder / "images", {"train": train, "val": val})
        made = {"key": key, "betons": {}}
    for name in sorted(betons - set(made["betons"])):
        write, asked = _WRITERS[name]
        made["betons"][name] = write(folder, name, asked)
    stamp.write_text(json.dumps(made))
    return load(folder)


def load(folder: Path) -> Dataset:
    """A dataset that `make` has made."""
    made = json.loads((folder / "stamp.json").read_text())["betons"]
    files = {split: sorted((folder / "images" / split).rglob("*.jpg")) for split in ("train", "val")}
    return Dataset(folder, files, {name: reason or folder / name for name, reason in made.items()})


def write_images(folder: Path, counts: dict[str, int]):
    """folder/<split>/<photograph>/<number>.jpg, as many of each split as `counts` says."""
    photos = {name: Image.fromarray(read_rgb(photo_path(file))) for name, file in PHOTOS.items()}
    for split, count in counts.items():
        for name in PHOTOS:
            (folder / split / name).mkdir(parents=True)
        for number in range(count):
            name = list(PHOTOS)[number % len(PHOTOS)]
            chance = random.Random(f"{split} {number}")
            image = window(photos[name], chance)
            image.save(folder / split / name / f"{number:05}.jpg", quality=QUALITY, subsampling="4:2:0")


def window(photo: Image.Image, chance: random.Random) -> Image.Image:
    """A random window of the photograph, resized to one of SHAPES, flipped by chance. Upright ones are windows of the
    photograph on its side: the photographs lie, and a window across would have to be enlarged."""
    width, height = chance.choices(list(SHAPES), SHAPES.values())[0]
    if height > width:
        photo = photo.transpose(Image.Transpose.ROTATE_90)
    largest = min(photo.width / width, photo.height / height)
    scale = chance.uniform(min(max(SMALLEST_WINDOW * largest, LEAST_SCALE), largest), largest)
    left = chance.uniform(0, photo.width - scale * width)
    top = chance.uniform(0, photo.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    image = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else image


def stored_bytes(beton: Path) -> int:
    """All that a .beton stores for its images, without the unused ends of pages."""
    from ffcv.reader import Reader

    return int(Reader(str(beton)).alloc_table["size"].sum())


# --- .beton files: <name>_train.beton and <name>_val.beton ----------------------------------------------------------


def _ours(folder: Path, name: str, option: str) -> str:
    """Runs write_datasets.py. Returns why that did not work, or nothing."""
    command = [sys.executable, ROOT / "write_datasets.py", f"--data.source={folder / 'images'}"]
    command += [f"--data.out={folder / name}", f"--image.max_side={LONGEST}", "--image.passthrough=false", option]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def _stock(folder: Path, name: str, mode: str) -> str:
    for split in ("train", "val"):
        out = folder / f"{name}_{split}.beton"
        by_ffcv(folder / "images" / split, out, workers=1, write_mode=mode, max_resolution=LONGEST)
    return ""


_WRITERS = {  # who writes it, and what is asked of it
    "ours_jpg": (_ours, "--image.mode=jpg"),
    "ours_raw": (_ours, "--image.mode=raw"),
    "ours_pyramid": (_ours, "--image.levels=500,256,160"),
    "ffcv_jpg": (_stock, "jpg"),
    "ffcv_raw": (_stock, "raw"),
}


def _key(train: int, val: int) -> str:
    """Changes with everything that the files depend on."""
    digest = hashlib.sha256(f"{train} {val}".encode())
    for package in ("pillow", "ffcv", "scikit-image", "scikit-learn"):
        digest.update(importlib.metadata.version(package).encode())
    own = [Path(__file__), ROOT / "bench/writers.py", ROOT / "write_datasets.py"]
    for source in [*own, *sorted((ROOT / "conversion").glob("*.py"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()
