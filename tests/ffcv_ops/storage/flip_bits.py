"""What the loader makes of a .beton of which one bit after the other is flipped, in a process that may die of it.

    python flip_bits.py FILE.beton LEAST [BEGIN:END:STEP ...]     # bits of the file

LEAST is stage.min_oversampling (0: none). A line for each bit and each data.cache: the bit's number, the cache and
`refused`, `same`, or the numbers of the samples whose pixels are others.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import describe
from tests.ffcv_ops import loading
from training.loading import Placement, train_loader

STAGE = replace(
    loading.STAGE, resolution=24, batch=1, mix_chunk=1, crop="src", flip=0.0, augment="none", jitter=None, repeats=1,
    mixup=0.0, cutmix=0.0,
)  # fmt: skip


def images_of(path, cache, least):
    """The images of an epoch, by sample: uint8 [samples, size, size, 3]."""
    samples = describe(path).samples
    stage = replace(STAGE, batch=samples, min_oversampling=least)
    batches = train_loader(path, samples, stage, seed=0, placement=Placement(workers=1, cache=cache))
    ((images, _),) = batches.epoch(0)
    shown = np.empty(images.shape, np.uint8)
    shown[batches.sample_ids(0) % samples] = images.numpy()
    return shown


def flip(path, bit):
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def outcome(path, cache, least, whole):
    try:
        shown = images_of(path, cache, least)
    except UserError as error:
        assert str(error).isprintable(), error
        return ["refused"]
    if len(shown) != len(whole):
        return ["other samples"]
    return [k for k in range(len(whole)) if not np.array_equal(shown[k], whole[k])] or ["same"]


def main(path, least, *parts):
    path, ways = Path(path), {"os": float(least) or None, "process": None}  # which holds one level
    whole = {cache: images_of(path, cache, least) for cache, least in ways.items()}
    for part in parts:
        for bit in range(*map(int, part.split(":"))):
            flip(path, bit)
            for cache, least in ways.items():
                print(bit, cache, end=" ", flush=True)
                print(*outcome(path, cache, least, whole[cache]))
            flip(path, bit)


if __name__ == "__main__":
    main(*sys.argv[1:])
