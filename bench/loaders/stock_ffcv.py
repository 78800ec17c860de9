"""Stock FFCV's Loader, decoders (which resize with OpenCV's INTER_AREA) and flip. Batches: uint8 [n, size, size, 3].

What `operations` augment: those of a user, ffcv_user_ops; ffcv_tuned_ops; torchvision's v2 on each image of a batch,
behind ToTorchImage, [n, 3, size, size]; or ours with our decoders, for_ffcv. FFCV-SSL, which brings FFCV more
operations, is a fork of an FFCV that cannot be installed beside this one.
"""

import numpy as np
import torch
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
from torchvision.transforms import v2

from bench.loaders.ffcv_tuned_ops import TUNED
from bench.loaders.ffcv_user_ops import STRAIGHTFORWARD, ColorJitter, SimpleRandomCropRGBImageDecoder, ThreeAugment
from bench.loaders.torchvision_steps import augmentations_of
from bench.loaders.torchvision_v2 import THREE
from bench.tasks import JITTER
from ffcv_ops import for_ffcv

_compiled = {}  # (.beton, crop, augment) -> loader: another size needs no other code, and compiling takes 30 s


def prepare(task, data, *, batch, workers, beton, operations="user"):
    path = f"{data.betons[beton]}_{task.split}.beton"
    key = (path, task.crop, task.augment)
    if key not in _compiled:
        _compiled.clear()  # an older loader would keep its memory
        _compiled[key] = _loader(path, task, batch, workers, operations)
    loader, decoder = _compiled[key]
    decoder.output_size = (task.size, task.size)
    loader.graph.collect_requirements()  # memory for this size
    samples = len(loader.indices)

    def epoch(batches):
        """The file's samples as often as it takes, in FFCV's random order."""
        loader.traversal_order.indices = np.resize(np.arange(samples, dtype=np.uint64), batches * batch)
        loader.first_traversal_order = loader.traversal_order.indices  # gives the epoch's length
        for images, _ in loader:
            yield images

    return epoch


def _loader(path, task, batch, workers, operations):
    decoder, *steps = _ours(task) if operations == "ours" else _stock(task, operations)
    pipelines = {"image": [decoder, *steps], "label": [IntDecoder(), ToTensor()]}
    loader = Loader(
        path, batch_size=batch, num_workers=workers, os_cache=True, order=OrderOption.RANDOM,
        drop_last=True, pipelines=pipelines,
    )  # fmt: skip
    return loader, decoder


def _stock(task, operations):
    size = (task.size, task.size)
    decoder = {
        "rrc": lambda: RandomResizedCropRGBImageDecoder(size),
        "src": lambda: SimpleRandomCropRGBImageDecoder(size),
        "center": lambda: CenterCropRGBImageDecoder(size, ratio=1.0),
    }[task.crop]()
    flip = [RandomHorizontalFlip()] if task.flip else []
    if operations == "torchvision":
        return [decoder, *flip, ToTensor(), ToTorchImage(), EachImage(augmentations_of(task, v2, THREE))]
    kernels = TUNED if operations == "tuned" else STRAIGHTFORWARD
    augment = [ThreeAugment(kernels), ColorJitter(JITTER, kernels)] if task.augment == "three" else []
    return [decoder, *flip, *augment, ToTensor()]


class EachImage(torch.nn.Module):
    """On a batch, transforms would draw once for all of its images."""

    def __init__(self, steps):
        super().__init__()
        self.transform = v2.Compose(steps)

    def forward(self, images):
        return torch.stack([self.transform(image) for image in images])


def _ours(task):
    flip = 0.5 if task.flip else 0.0
    decoder = {
        "rrc": lambda: for_ffcv.RandomResizedCropRGBImageDecoder(task.size, flip=flip),
        "src": lambda: for_ffcv.SimpleRandomCropRGBImageDecoder(task.size, flip=flip),
        "center": lambda: for_ffcv.CenterCropRGBImageDecoder(task.size),
    }[task.crop]()
    augment = {
        "none": [],
        "three": [for_ffcv.ThreeAugment, lambda: for_ffcv.ColorJitter(JITTER)],
        "rand": [for_ffcv.RandAugment],
        "auto": [for_ffcv.AutoAugment],
        "trivial": [for_ffcv.TrivialAugment],
    }[task.augment]
    return [decoder, *(operation() for operation in augment), ToTensor()]
