"""Damaged .beton files: 62 by hand, three while the file is open, and single bits. Read in order; every sample's pixels
and label are held against those of the sound file."""

import functools
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from bench.faults import campaign, damage
from bench.faults.campaign import OURS, ROOT, STOCK, Fault
from ffcv_ops.errors import exits_cleanly

SAMPLES, SIDE, CLASSES = 64, 64, 5
LIMIT = 20  # seconds; the sound file takes ours 0.2 and stock FFCV, which compiles, 3
FLIPS = {"header": 100, "field descriptors": 60, "sample metadata": 100, "image data": 200, "allocation table": 100}
FLIPS_OF_STOCK = 60  # of each region
WHILE_OPEN = ("truncated while open", "rewritten while open", "removed while open")


def run(folder: Path, *, quick: bool) -> list[Fault]:
    good = write(folder)
    file = damage.DatasetInfo(good.read_bytes())
    by_hand = list(damage.BY_HAND)[:: 8 if quick else 1]
    flips = {region: damage.flips(file, region, count // (20 if quick else 1)) for region, count in FLIPS.items()}
    faults = []
    for who, read in ((OURS, read_ours),) if quick else ((OURS, read_ours), (STOCK, read_stock)):
        at_once = (os.cpu_count() or 1) * (1 if who == OURS else 3)  # stock FFCV mostly hangs, which costs nothing
        sound = campaign.forked(read, good, limit=60).value
        if sound is None:
            raise RuntimeError(f"{who} cannot read the sound file")
        cases = [(read, good, folder / who, name, None) for name in by_hand]
        most = None if who == OURS else FLIPS_OF_STOCK
        cases += [(read, good, folder / who, region, bit) for region in flips for bit in flips[region][:most]]
        cases += [(read, good, folder / who, name, None) for name in WHILE_OPEN[: 1 if quick else None]]
        for (_, _, _, name, bit), ended in campaign.each(cases, _read_damaged, limit=LIMIT, at_once=at_once):
            outcome, note = campaign.judged(ended, right=functools.partial(_same, sound))
            if who == STOCK and outcome == "crash" and ended.status > 0:
                outcome = "detected"  # any exception will do
            title = name if bit is None else f"bit {bit} ({name})"
            faults.append(Fault(who, title, outcome, note))
    return faults


def write(folder: Path) -> Path:
    """A .beton of SAMPLES noisy images of SIDE x SIDE pixels, by our writer, with what belongs beside it."""
    chance = np.random.default_rng(0)
    for number in range(SAMPLES):
        coarse = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        noise = chance.integers(-20, 21, (SIDE, SIDE, 3))
        image = np.clip(np.kron(coarse, np.ones((8, 8, 1), int)) + noise, 0, 255).astype(np.uint8)
        file = folder / "images" / "train" / f"class {number % CLASSES}" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    command = [sys.executable, "write_datasets.py", f"--data.source={folder / 'images'}"]
    command.append(f"--data.out={folder / 'good'}")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)  # the first time it compiles
    return folder / "good_train.beton"


def _read_damaged(read, good: Path, folder: Path, name: str, bit: int | None):
    folder = folder / str(os.getpid())
    folder.mkdir(parents=True)
    try:
        for beside in good.parent.glob(f"{good.stem}.*"):
            shutil.copy(beside, folder)
        path, file = folder / good.name, damage.DatasetInfo(good.read_bytes())
        if name in WHILE_OPEN:
            return read(path, after_opening=functools.partial(_while_open, name, path))
        if bit is not None:
            path.write_bytes(damage.flipped(file, bit))
        else:
            path.write_bytes(damage.by_hand(file, name))
        return read(path)
    finally:
        shutil.rmtree(folder)


def _while_open(name: str, path: Path):
    if name == "truncated while open":
        os.truncate(path, 4096)
    elif name == "removed while open":
        path.unlink()
    else:
        file = damage.DatasetInfo(path.read_bytes())
        file.image(7)[100:400] = 0x55
        with path.open("r+b") as there:
            there.write(file.bytes.tobytes())


@exits_cleanly
def read_ours(path: Path, after_opening=lambda: None):
    """(pixels, labels) as training would see them without augmentation."""
    from config.recipe import BASE_RECIPE, load_recipe
    from ffcv_ops import loader
    from ffcv_ops.storage.index import describe

    stage = load_recipe(BASE_RECIPE, {"stage.resolution": str(SIDE)}).stages[0]
    batches = loader.eval_loader(path, describe(path).samples, stage, batch=16, placement=loader.Placement(workers=1))
    after_opening()
    return _gathered(batches.epoch(0))


def read_stock(path: Path, after_opening=lambda: None):
    batches = stock_loader(path)
    after_opening()
    return _gathered((images, labels[:, 0]) for images, labels in batches)


def stock_loader(path: Path):
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    warnings.simplefilter("ignore")
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]}
    order = OrderOption.SEQUENTIAL
    return Loader(str(path), batch_size=16, num_workers=1, os_cache=True, order=order, pipelines=pipelines)


def _gathered(batches):
    pairs = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in batches]
    return tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))


def _same(sound, found) -> bool:
    return len(sound) == len(found) and all(map(np.array_equal, sound, found))
