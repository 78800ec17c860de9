"""A stage's loaders, of this process among those that train together."""

from typing import NamedTuple

import torch

import ffcv_ops
from config import loading
from config.recipe import StageConfig
from ffcv_ops import order
from ffcv_ops.errors import UserError
from ffcv_ops.loader import Loader


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

    def options(self) -> dict:
        given = self._asdict()
        return given | {"world_size": given.pop("world")}


ALONE = Placement()  # one process, on the CPU


def train_loader(
    path, num_samples: int, stage: StageConfig, *, seed: int, placement=ALONE, shuffle_pages=None, bad_limit=None
) -> Loader:
    """Training batches (images, labels) of this rank, in memory that is used again. num_samples: that the data set was
    found to have. shuffle_pages, bad_limit: as in `ffcv_ops.train_loader`.

    Raises UserError when the data set is smaller than one batch or the batch does not divide among the ranks.
    """
    options = loading.train_options(stage, world=placement.world)
    if order.epoch_length(num_samples, repeats=stage.repeats) < stage.batch:
        raise UserError(
            f"{path}: {num_samples} images do not fill one batch of {stage.batch}"
            f" (stage {stage.name}, {stage.repeats} repeats); try {loading.smaller_batch(stage, num_samples)} and a"
            " lower --stage.lr"
        )
    more = {"seed": seed, "shuffle_pages": shuffle_pages, "bad_limit": bad_limit}
    return _of(num_samples, ffcv_ops.train_loader(path, **options, **placement.options(), **more))


def eval_loader(path, num_samples: int, stage: StageConfig, *, batch: int, placement=ALONE) -> Loader:
    """Each image once over all ranks, `batch` at a time in this one, in memory that is used again."""
    options = loading.eval_options(stage) | placement.options()
    return _of(num_samples, ffcv_ops.eval_loader(path, batch_size=batch, **options))


def _of(num_samples, loader) -> Loader:
    found = len(loader.reader.metadata)
    if found != num_samples:
        raise UserError(f"{loader.reader.path}: holds {found} samples, no longer {num_samples}; start again")
    return loader
