"""What stock FFCV's loader makes of one image field of a .beton, in a process of its own.

    python stock_loader.py FILE.beton FIELD DECODER CACHE BATCH OUT.npz      # CACHE: os or process

Its OS cache marks Numba's own uint8[::1] as read-only, for all kernels of the process and for good.
"""

import os
import sys

import numpy as np
from ffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import ToTensor

DECODERS = {
    "simple": SimpleRGBImageDecoder,
    "centre crop": lambda: CenterCropRGBImageDecoder((32, 32), ratio=1),
    "random crop": lambda: RandomResizedCropRGBImageDecoder((32, 32), scale=(1, 1), ratio=(1, 1)),
}


def main(path, field, decoder, cache, batch, out):
    pipelines = dict.fromkeys(Reader(path).field_names)  # None leaves a field out
    pipelines |= {field: [DECODERS[decoder](), ToTensor()], "label": [IntDecoder(), ToTensor()]}
    loader = Loader(path, int(batch), 1, cache == "os", OrderOption.SEQUENTIAL, drop_last=False, pipelines=pipelines)
    images, labels = zip(*((images.numpy().copy(), labels.numpy().copy()) for images, labels in loader), strict=True)
    np.savez(out, images=np.concatenate(images), labels=np.concatenate(labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # FFCV's threads and Numba's clean-up after its compiled functions make trouble at an orderly end
