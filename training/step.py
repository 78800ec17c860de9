"""One optimizer step: this rank's share of a global batch -> gradients, piece by piece -> new weights.

In: uint8 images (n, size, size, 3) and int64 labels (n,) on the device. All random numbers, of mixing and of stochastic
depth, are keyed by (seed, step, place in the global batch), so neither ranks nor pieces change what is computed.

Nothing here makes the host wait for the device: it runs ahead until a log point reads what has been summed up there.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config.recipe import Recipe, StageConfig
from training import depth, distributed, losses, mixing, optim, parallel
from training.datasets import DataSet
from training.distributed import Ranks
from training.state import State


class Run(NamedTuple):
    """What stays the same during a run."""

    recipe: Recipe
    ranks: Ranks
    datasets: dict[str, DataSet]  # by the word of `stage.data`
    precision: torch.dtype

    def share(self, stage: StageConfig) -> int:
        """This rank's samples of a batch."""
        return stage.batch // self.ranks.world

    def autocast(self):
        """The context of a forward pass."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.ranks.device.type, dtype=self.precision if enabled else None, enabled=enabled)


def gradients(
    run: Run, state: State, stage: StageConfig, forward: nn.Module, images: Tensor, labels: Tensor,
    *, step: int, seed: int, piece: int,
) -> Tensor:  # fmt: skip
    """Adds up the gradients of the batch, `piece` samples at a time, through `forward`: the model, or the model in
    DDP. `step` counts within the stage. Returns the mean loss, a scalar on the device."""
    device, share, speed = run.ranks.device, len(images), run.recipe.speed
    mix = _compiled_mix() if speed.compile else mixing.mix
    subset = speed.drop_path == "subset"
    loss_of, stochastic = losses.BY_NAME[stage.loss], depth.branches(state.model)
    loss = torch.zeros((), device=device)
    for start in range(0, share, piece):
        place = run.ranks.rank * share + start
        depth.set_masks(stochastic, seed=seed, step=step, first=place, samples=piece, device=device, subset=subset)
        inputs, targets = mix(
            images[start : start + piece],
            labels[start : start + piece],
            distributed.to_device(mixing.plan(seed, step, stage, offset=place, count=piece), device),
            classes=run.datasets[stage.data].classes,
            smoothing=stage.smoothing,
        )
        if not speed.channels_last:
            inputs = inputs.contiguous()
        if speed.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with parallel.summing(forward, last=start + piece == share):
            with run.autocast():
                part = loss_of(forward(inputs), targets) * (piece / share)
            state.scaler.scale(part).backward()
        loss += part.detach()
    return loss


def update(run: Run, state: State, stage: StageConfig, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The optimizer's step, and the average's, with the gradients at hand; nothing moves if they are not finite.

    Returns scalars on the device: the gradients' norm before clipping, and whether the step was bad, 1.0 or 0.0. With
    `on_nonfinite: stop` all steps after a bad one are bad too and move nothing, so that whoever reads this later finds
    the weights as they were before it. Scaled gradients (fp16) overflow now and then: there only the loss counts.
    """
    norm, skipped = optim.update(state.optimizer, clip_norm=stage.clip_norm, scaler=state.scaler, halted=state.halted)
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        optim.average(state.average, state.model, stage.ema, skipped=skipped)
    state.step += 1
    if state.scaler.is_enabled():
        return norm, (~loss.isfinite()).float()
    if run.recipe.on_nonfinite == "stop":
        state.halted = skipped
    return norm, skipped


@functools.cache
def _compiled_mix():
    return torch.compile(mixing.mix, dynamic=False)


def random_batch(run: Run, stage: StageConfig, samples: int) -> tuple[Tensor, Tensor]:
    """Images and labels without meaning, as a loader would give them."""
    shape = (samples, stage.resolution, stage.resolution, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, device=run.ranks.device)
    return images, torch.randint(run.datasets[stage.data].classes, (samples,), device=run.ranks.device)
