"""Stock FFCV's Loader with its own decoders and flip; 3-Augment and jitter from ffcv_user_ops or, if `tuned`, from
ffcv_tuned_ops. FFCV resizes with OpenCV's INTER_AREA. Batches: uint8 [n, size, size, 3]."""

import numpy as np
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor

from bench.loaders.ffcv_tuned_ops import TUNED
from bench.loaders.ffcv_user_ops import STRAIGHTFORWARD, ColorJitter, SimpleRandomCropRGBImageDecoder, ThreeAugment
from bench.tasks import JITTER

_compiled = {}  # (.beton, crop, augment) -> loader: another size needs no other code, and compiling takes 30 s


def prepare(task, data, *, batch, workers, beton, tuned=False):
    path = f"{data.betons[beton]}_{task.split}.beton"
    key = (path, task.crop, task.augment)
    if key not in _compiled:
        _compiled.clear()  # an older loader would keep its memory
        _compiled[key] = _loader(path, task, batch, workers, TUNED if tuned else STRAIGHTFORWARD)
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


def _loader(path, task, batch, workers, kernels):
    size = (task.size, task.size)
    decoder = {
        "rrc": lambda: RandomResizedCropRGBImageDecoder(size),
        "src": lambda: SimpleRandomCropRGBImageDecoder(size),
        "center": lambda: CenterCropRGBImageDecoder(size, ratio=1.0),
    }[task.crop]()
    flip = [RandomHorizontalFlip()] if task.flip else []
    augment = [ThreeAugment(kernels), ColorJitter(JITTER, kernels)] if task.augment == "three" else []
    pipelines = {"image": [decoder, *flip, *augment, ToTensor()], "label": [IntDecoder(), ToTensor()]}
    loader = Loader(
        path, batch_size=batch, num_workers=workers, os_cache=True, order=OrderOption.RANDOM,
        drop_last=True, pipelines=pipelines,
    )  # fmt: skip
    return loader, decoder
