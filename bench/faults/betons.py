"""Damaged .beton files: twenty by hand, and single bits. Read in order; every sample's pixels and label are held
against those of the sound file."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from bench.faults import damage
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server
from ffcv_ops.errors import exits_cleanly

SAMPLES, SIDE, CLASSES = 64, 64, 5
LIMIT = 20  # seconds; the sound file takes 0.2
COMPILING = 900  # seconds, at most, until the kernels are in their cache
FLIPS = {"header": 100, "field descriptors": 60, "sample metadata": 100, "image data": 200, "allocation table": 100}


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    good = write(folder, server)
    file = damage.File(good.read_bytes())
    sound = finished(server.start((_read, good)), COMPILING).value
    if sound is None:
        raise RuntimeError("the sound file cannot be read")
    cases = [(name, None) for name in list(damage.BY_HAND)[:: 8 if quick else 1]]
    for region, count in FLIPS.items():
        cases += [(region, bit) for bit in damage.flips(file, region, count // (20 if quick else 1))]

    def read_damaged(name: str, bit: int | None) -> tuple[str, str]:
        ended = finished(server.start((_read_damaged, good, folder / f"{name} {bit}", name, bit)), LIMIT)
        return judged(ended, right=lambda found: all(map(np.array_equal, sound, found)))

    faults = []
    for (name, bit), outcome in each(cases, read_damaged):
        faults.append(Fault(name if bit is None else f"bit {bit} ({name})", *outcome))
    return faults


def write(folder: Path, server: Server) -> Path:
    """A .beton of SAMPLES noisy images of SIDE x SIDE pixels, by our writer, with what belongs beside it."""
    chance = np.random.default_rng(0)
    for number in range(SAMPLES):
        coarse = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        noise = chance.integers(-20, 21, (SIDE, SIDE, 3))
        image = np.clip(np.kron(coarse, np.ones((8, 8, 1), int)) + noise, 0, 255).astype(np.uint8)
        file = folder / "images" / "train" / f"class {number % CLASSES}" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    path = folder / "good_train.beton"
    words = ["write_datasets.py", f"--data.source={folder / 'images'}", f"--data.out={folder / 'good'}"]
    ended = finished(server.start(words), COMPILING)
    if ended.status != 0:
        raise RuntimeError(f"the file could not be written: {ended.text[-500:]}")
    return path


def _read_damaged(good: Path, folder: Path, name: str, bit: int | None):
    folder.mkdir(parents=True)
    try:
        for beside in good.parent.glob(f"{good.stem}.*"):
            shutil.copy(beside, folder)
        path, file = folder / good.name, damage.File(good.read_bytes())
        path.write_bytes(damage.by_hand(file, name) if bit is None else damage.flipped(file, bit))
        return _read(path)
    finally:
        shutil.rmtree(folder)


@exits_cleanly
def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, labels) as training would see them without augmentation."""
    from config.recipe import BASE_RECIPE, load_recipe
    from ffcv_ops.storage.index import describe
    from training import loading as loader

    stage = load_recipe(BASE_RECIPE, {"stage.resolution": str(SIDE)}).stages[0]
    batches = loader.eval_loader(path, describe(path).samples, stage, batch=16, placement=loader.Placement(workers=1))
    pairs = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in batches.epoch(0)]
    images, labels = zip(*pairs, strict=True)
    return np.concatenate(images), np.concatenate(labels)
