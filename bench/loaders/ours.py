"""This project's loader, through the functions that training uses or, if `library`, those of docs/library.md, which
copy each batch. decoder: data.decoder. Batches: uint8 [n, size, size, 3]."""

import dataclasses
import itertools

import numpy as np

import ffcv_ops
from bench.loaders import Unavailable
from bench.tasks import JITTER
from config.recipe import BASE_RECIPE, load_recipe
from ffcv_ops.jpeg import native
from ffcv_ops.storage.index import describe
from training.loading import Placement, eval_loader, train_loader


def stage_of(task, batch, keys):
    """base.yaml's stage with the task's crop and augmentation, each image once an epoch, not mixed."""
    stage = load_recipe(BASE_RECIPE).stages[0]
    return dataclasses.replace(
        stage, resolution=task.size, batch=batch, crop=task.crop, flip=0.5 if task.flip else 0.0,
        augment={"auto": "auto-original"}.get(task.augment, task.augment),
        jitter=JITTER if task.augment == "three" else None,
        repeats=1, mixup=0, cutmix=0, **keys,
    )  # fmt: skip


def library_loader(path, stage, workers):
    """What three lines give for the stage of a task."""
    common = {"resolution": stage.resolution, "batch_size": stage.batch, "workers": workers}
    if stage.crop == "center":
        return ffcv_ops.eval_loader(path, crop_ratio=stage.eval_crop, **common)
    augment = {"augment": stage.augment, "color_jitter": stage.jitter}
    return ffcv_ops.train_loader(path, crop=stage.crop, flip=stage.flip, seed=0, **augment, **common)


def prepare(task, data, *, batch, workers, beton, keys=None, library=False, decoder="auto"):
    native.use(decoder)
    files = data.betons[beton]
    if isinstance(files, str):
        raise Unavailable(files)
    path = f"{files}_{task.split}.beton"
    samples, stage = describe(path).samples, stage_of(task, batch, keys or {})
    if library:
        loader = library_loader(path, stage, workers)
    elif task.crop == "center":
        loader = eval_loader(path, samples, stage, batch=batch, placement=Placement(workers=workers))
    else:
        loader = train_loader(path, samples, stage, seed=0, placement=Placement(workers=workers))
    one_epoch, epochs = loader.sample_ids, itertools.count()

    def epoch(batches):
        """As many epochs as it takes, without a break between them."""
        ids = np.concatenate([one_epoch(next(epochs)) for _ in range(batches * batch // samples + 2)])
        loader.sample_ids = lambda number: ids[: batches * batch]
        for images, _ in loader.epoch(0):
            yield images

    return epoch
