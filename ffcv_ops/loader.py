"""A stage's loaders: the only place that spells the pipeline out.

    for images, labels in train_loader(...).epoch(3): ...

images: uint8 [batch, size, size, 3], labels: int64 [batch], on the device. They are FFCV's buffers: valid until the
next batch is asked for, so copy what you keep.
"""

from typing import NamedTuple

import torch

from ffcv_ops import host, order
from ffcv_ops.augment import chain, load
from ffcv_ops.corrupt_samples import CorruptSamples
from ffcv_ops.decoders import ImageDecoder
from ffcv_ops.errors import UserError
from ffcv_ops.kernels import crops, resample
from ffcv_ops.prefetch import Loader, Order
from ffcv_ops.storage.index import Index, column, open_index, pages_of
from ffcv_ops.transform import TransformParams


class Placement(NamedTuple):
    """Where a loader works: its process among those that share the batches, and what that may use.

    workers: threads that decode, or `auto`. device: where batches are wanted. cache: `os` reads each image where it is
    needed, `process` reads whole pages ahead into this process's memory.
    """

    rank: int = 0
    world: int = 1
    workers: int | str = "auto"
    device: torch.device = torch.device("cpu")
    cache: str = "os"

    @property
    def threads(self) -> int:
        """Decoding threads: `auto` shares the cores among the processes of this machine. On a GPU one core is left to
        the thread that launches its kernels."""
        if self.workers == "auto":
            return max(host.cores_per_process() - (self.device.type == "cuda"), 1)
        return min(self.workers, host.usable_cores())


ALONE = Placement()  # one process, on the CPU


def plan_of(stage) -> TransformParams:
    """What happens to a training sample of this stage. Executes and compiles augmentations of the user's own; what is
    wrong with one is a UserError."""
    interpolation = resample.NAMES[stage.interpolation]
    return TransformParams(
        crop=crops.NAMES[stage.crop],
        scale_low=float(stage.rrc_scale[0]),
        scale_high=float(stage.rrc_scale[1]),
        ratio=float(stage.eval_crop),
        interpolation=interpolation,
        min_oversampling=float(stage.min_oversampling or 0.0),
        flip=float(stage.flip),
        chain=load.compiled(load.from_text(chain.text_of(stage)), interpolation),
    )


def train_loader(
    path, num_samples: int, stage, *, seed: int, placement: Placement = ALONE, shuffle_pages=None, bad_limit=None
) -> Loader:
    """Training batches of this rank: `stage` names crop, augmentation, repeats, global batch and mixing chunk.

    path: a .beton, or a pattern of shards. shuffle_pages: None, or how many of the file's pages are shuffled together
    (order.py). bad_limit: None, or which share of an epoch's samples may be replaced (corrupt_samples.py).

    Raises UserError when the data set is smaller than one batch or the batch does not divide among the ranks.
    """
    rank, world = placement.rank, placement.world
    if stage.batch % world:
        raise UserError(f"stage {stage.name}: batch {stage.batch} does not divide among {world} processes")
    mixed = stage.mixup > 0 or stage.cutmix > 0
    if mixed and stage.batch // world % 2:
        raise UserError(f"stage {stage.name}: mixing needs an even batch per process, not {stage.batch} / {world}")
    steps = order.epoch_length(num_samples, repeats=stage.repeats) // stage.batch
    if steps == 0:
        raise UserError(
            f"{path}: {num_samples} images do not fill one batch of {stage.batch}"
            f" (stage {stage.name}, {stage.repeats} repeats); try {order.smaller_batch(stage, num_samples)} and a lower"
            " --stage.lr"
        )
    index, chunk = _index(path, num_samples), stage.mix_chunk if mixed else 1
    windows = None
    if shuffle_pages is not None:
        windows = order.PageWindows(pages_of(column(index, "image"), index.page_size), shuffle_pages)

    labels = column(index, "label") if stage.sampling == "balanced" else None

    def sample_ids(epoch):
        ids = order.epoch_sample_ids(
            num_samples, seed=seed, epoch=epoch, repeats=stage.repeats, windows=windows, labels=labels
        )
        global_order = order.arrange(ids, batch=stage.batch, chunk=chunk)
        return order.rank_share(global_order, batch=stage.batch, rank=rank, world=world)

    decoder = ImageDecoder(params=plan_of(stage), resolution=stage.resolution, seed=seed, workers=placement.threads)
    local = Order(sample_ids, steps * stage.batch // world, stage.batch // world)
    corrupt = CorruptSamples(index, seed=seed, limit=bad_limit)
    return Loader(index, decoder, local, corrupt, device=placement.device, cache=placement.cache)


def eval_loader(path, num_samples: int, stage, *, batch: int, placement: Placement = ALONE) -> Loader:
    """Each image once over all ranks: shortest side to eval_side / eval_crop, center crop, nothing random. A corrupt
    sample always stops it: what counts every image once cannot replace one."""
    index = _index(path, num_samples)
    params = TransformParams(
        crop=crops.CENTER, ratio=float(stage.eval_crop), interpolation=resample.NAMES[stage.interpolation]
    )
    decoder = ImageDecoder(params=params, resolution=stage.eval_side, seed=0, workers=placement.threads)
    share = order.evaluation_share(num_samples, rank=placement.rank, world=placement.world)
    local, corrupt = Order(lambda epoch: share, len(share), batch), CorruptSamples(index, seed=0, limit=None)
    return Loader(index, decoder, local, corrupt, device=placement.device, cache=placement.cache)


def _index(path, num_samples) -> Index:
    """The index of a data set that was found to hold so many samples."""
    index = open_index(path)
    if len(index.metadata) != num_samples:
        raise UserError(f"{path}: holds {len(index.metadata)} samples, no longer {num_samples}; start again")
    return index
