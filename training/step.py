"""One optimizer step: this rank's share of a global batch -> gradients, piece by piece -> new weights.

In: uint8 images (n, size, size, 3) and int64 labels (n,) on the device. All random numbers, of mixing and of stochastic
depth, are keyed by (seed, step, place in the global batch), so neither ranks nor pieces change what is computed.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training import depth, losses, mixing, optim
from training.datasets import DataSet
from training.distributed import Ranks
from training.recipe import Run, Stage
from training.state import State


class Job(NamedTuple):
    """What stays the same during a run."""

    run: Run
    ranks: Ranks
    sets: dict[str, DataSet]  # by the word of `stage.data`
    precision: torch.dtype

    def share(self, stage: Stage) -> int:
        """This rank's samples of a batch."""
        return stage.batch // self.ranks.world

    def autocast(self):
        """The context of a forward pass."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.ranks.device.type, dtype=self.precision if enabled else None, enabled=enabled)


def gradients(
    job: Job, state: State, stage: Stage, forward: nn.Module, images: Tensor, labels: Tensor,
    *, step: int, seed: int, piece: int,
) -> Tensor:  # fmt: skip
    """Adds up the gradients of the batch, `piece` samples at a time, through `forward`: the model, or the model in
    DDP or compiled. `step` counts within the stage. Returns the mean loss, a scalar on the device."""
    device, share = job.ranks.device, len(images)
    loss_of, stochastic = losses.BY_NAME[stage.loss], depth.branches(state.model)
    loss = torch.zeros((), device=device)
    for start in range(0, share, piece):
        place = job.ranks.rank * share + start
        depth.set_masks(stochastic, seed=seed, step=step, first=place, samples=piece, device=device)
        rows = mixing.plan(seed, step, stage, offset=place, count=piece)
        inputs, targets = mixing.mix(
            images[start : start + piece],
            labels[start : start + piece],
            None if rows is None else rows.to(device, non_blocking=True),
            classes=job.sets[stage.data].classes,
            smoothing=stage.smoothing,
        )
        if not job.run.speed.channels_last:
            inputs = inputs.contiguous()
        last = start + piece == share
        with nullcontext() if last or job.ranks.world == 1 else forward.no_sync():
            with job.autocast():
                part = loss_of(forward(inputs), targets) * (piece / share)
            state.scaler.scale(part).backward()
        loss += part.detach()
    return loss


def update(state: State, stage: Stage) -> Tensor:
    """The optimizer's step, and the average's, with the gradients at hand. Returns their norm before clipping."""
    norm = optim.update(state.optimizer, clip_norm=stage.clip_norm, scaler=state.scaler)
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.update(state.model)
    state.step += 1
    return norm


def random_batch(job: Job, stage: Stage, samples: int) -> tuple[Tensor, Tensor]:
    """Images and labels without meaning, as a loader would give them."""
    shape = (samples, stage.resolution, stage.resolution, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, device=job.ranks.device)
    return images, torch.randint(job.sets[stage.data].classes, (samples,), device=job.ranks.device)
