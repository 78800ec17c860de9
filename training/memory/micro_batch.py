"""The micro-batch: how many samples go through the model at once. It changes memory, speed and rounding, not the draws.

In: a stage about to begin. Out: a divisor of this rank's part of the batch. Where `speed.micro_batch` is auto, a GPU
tries what fits; a CPU, where too much memory is not refused but swapped, keeps to a bound, the same on every CPU.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from config.recipe import StageConfig
from ffcv_ops import mixing
from ffcv_ops.errors import UserError
from training import distributed
from training.planning import cost, estimate
from training.run import Run
from training.stage import Stage

CPU_BYTES = 4 << 30  # of activations
CPU_SAMPLES = 256
EVALUATED = 64  # without activations to keep, far below what training takes
LOADER_BATCHES = 5  # what FFCV keeps on the device: three ahead, the one in use and the one before it


def find(run: Run, stage: Stage, forward_backward: Callable[[Run, Stage, Tensor, Tensor], Tensor]) -> int:
    """Samples per forward pass: what the recipe says or, for auto, as many as fit. forward_backward: of a batch."""
    config, asked, local_batch_size = stage.config, run.recipe.speed.micro_batch, run.local_batch_size(stage.config)
    if asked != "auto":
        if local_batch_size % asked:
            wrong = f"{local_batch_size} samples per process are no multiple of speed.micro_batch {asked}"
            raise UserError(f"stage {config.name}: {wrong}")
        return asked
    options = divisors(local_batch_size, even=config.mixing)
    if run.ranks.device.type == "cpu":
        return from_memory_bound(stage.model, stage.model_side, run.precision, options)

    def attempt(samples):
        # Eagerly, also what is or will be compiled: each size would take one of the eight entries of Dynamo's cache.
        trial = replace(stage, micro_batch_size=samples, mix=mixing.mix)
        trial.model.train()
        with torch.compiler.set_stance("force_eager"):
            forward_backward(run, trial, *random_batch(run, config, samples, stage.model_side))

    weights = 4 * cost.num_parameters(stage.model)
    moments = 0 if stage.optimizer.state else estimate.moments(config.optimizer)
    images = LOADER_BATCHES * local_batch_size * 3 * stage.model_side**2
    return from_oom_search(stage.model, attempt, options, reserved=weights * (1 + moments) + images)


def random_batch(run: Run, config: StageConfig, samples: int, side: int | None = None) -> tuple[Tensor, Tensor]:
    """Images and labels without meaning, as a loader would give them. side: pixels; the stage's resolution without."""
    shape = (samples, *[side or config.resolution] * 2, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, device=run.ranks.device)
    return images, torch.randint(run.datasets[config.data].classes, (samples,), device=run.ranks.device)


def for_evaluation(asked: int | Literal["auto"], in_training: int = EVALUATED) -> int:
    """Images per forward pass where nothing is learned and `in_training` samples fit in training. asked:
    speed.micro_batch, which is the most where it is a number."""
    most = max(in_training, EVALUATED)
    return most if asked == "auto" else min(asked, most)


def divisors(local_batch_size: int, *, even: bool) -> list[int]:
    """The divisors of a batch, largest first; where samples are mixed in pairs, the even ones."""
    found = [n for n in range(local_batch_size, 0, -1) if local_batch_size % n == 0]
    return [n for n in found if n % 2 == 0] if even else found


def from_memory_bound(network: nn.Module, resolution: int, precision: torch.dtype, options: list[int]) -> int:
    """The largest of `options` whose activations stay within `CPU_BYTES`, or the smallest there is."""
    options = [n for n in options if n <= CPU_SAMPLES] or options[-1:]
    _, each = cost.activation_bytes(network, resolution, precision)
    return next((n for n in options if n * each <= CPU_BYTES), options[-1])


def from_oom_search(network: nn.Module, attempt: Callable[[int], object], options: list[int], *, reserved: int) -> int:
    """The largest of `options` with which `attempt(samples)`, a forward and backward pass, fits into the memory of
    every rank's device, at least halving from one trial to the next. `reserved`: bytes that a step needs besides.

    Everything is as before afterwards: gradients gone, buffers and random numbers restored.
    """
    device = next(network.parameters()).device
    fits, left = 0, options
    with untouched(network):
        while left and not fits:
            fits = left[0] if _fits(network, attempt, left[0], reserved, device) else 0
            left = [n for n in left if n <= left[0] // 2]
    fits = distributed.all_reduce_min(fits, device)
    if not fits:
        raise UserError(f"not even {options[-1]} samples at once fit into the memory of {device}; use a smaller model")
    return fits


@contextmanager
def untouched(network: nn.Module):
    """What is tried within leaves no trace: gradients gone, buffers and random numbers restored."""
    device = next(network.parameters()).device
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            network.zero_grad(set_to_none=True)
            for buffer, before in buffers:
                buffer.copy_(before)


def _fits(network, attempt, samples, reserved, device):
    try:
        space = torch.empty(reserved, dtype=torch.uint8, device=device)
        attempt(samples)
        del space
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        network.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
