"""timm's create_loader with its own transforms; the batches are those before its prefetcher normalises them: uint8
[n, 3, size, size].

3-Augment is timm's policy `3a`; there is no TrivialAugment. The simple random crop is its crop mode `rkrr` with scale
and ratio fixed at 1: the short side to the size and a random window, without the paper's 4 reflected border pixels.
"""

import torch
from PIL import Image
from timm.data import auto_augment, create_loader

from bench.loaders.files import Files, restarting
from bench.loaders.reference_pillow import read
from bench.tasks import JITTER

POLICIES = {"none": None, "three": "3a", "rand": "rand-m9-mstd0.5-inc1", "auto": "original"}


def _posterize(image, bits_to_keep, **_):
    """timm's own, but for the 0 bits that it sometimes asks of Pillow: since version 13 an error, before it black."""
    return auto_augment.posterize(image, bits_to_keep) if bits_to_keep else Image.new("RGB", image.size)


def prepare(task, data, *, batch, workers):
    for name in ("Posterize", "PosterizeOriginal", "PosterizeIncreasing"):
        auto_augment.NAME_TO_OP[name] = _posterize
    dataset = Files(data.files[task.split], read)
    dataset.length = batch
    crop = {
        "rrc": {},
        "src": {"train_crop_mode": "rkrr", "scale": (1, 1), "ratio": (1, 1)},
        "center": {"crop_pct": 1.0},
    }[task.crop]
    loader = create_loader(
        dataset, input_size=(3, task.size, task.size), batch_size=batch, is_training=task.crop != "center",
        interpolation="bicubic", hflip=0.5, color_jitter=JITTER if task.augment == "three" else None,
        auto_augment=POLICIES[task.augment], num_workers=workers, device=torch.device("cpu"), **crop,
    )  # fmt: skip
    return restarting(loader.loader, dataset, batch)
