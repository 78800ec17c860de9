"""What becomes of a device that runs out of memory: one line that names the micro-batch and a smaller one."""

from contextlib import contextmanager

import torch

from config.recipe import StageConfig
from ffcv_ops.errors import UserError
from training.memory import micro_batch
from training.run import Run

GO_ON = ", the same command then goes on from the last checkpoint"


@contextmanager
def explained_in_training(run: Run, config: StageConfig, micro_batch_size: int):
    """Within, to run out of a device's memory is a `UserError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = _smaller(run, config, micro_batch_size // 2) or "use a smaller model or --speed.parallel=fsdp"
        raise UserError(
            f"stage {config.name}: {run.ranks.device} has too little memory for {micro_batch_size} samples at once"
            f" (speed.micro_batch); {advice}{GO_ON}"
        ) from error


@contextmanager
def explained_in_evaluation(run: Run, config: StageConfig, batch: int, *, micro_batch_size: int | None = None):
    """The same of an evaluation with `batch` images at once. micro_batch_size: of the training that it belongs to, if
    it does."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = _smaller(run, config, min(batch // 2, micro_batch_size or batch)) or "use a smaller model"
        raise UserError(
            f"stage {config.name}: {run.ranks.device} has too little memory to evaluate {batch} images at once;"
            f" {advice}{GO_ON if micro_batch_size else ''}"
        ) from error


def _smaller(run, config, most):
    """The option for the largest micro-batch that is possible up to `most`; "" where there is none."""
    options = micro_batch.divisors(run.local_batch_size(config), even=config.mixing)
    return next((f"try --speed.micro_batch={n}" for n in options if n <= most), "")
