"""The micro-batch: how many samples go through the model at once. It changes memory, speed and rounding, not the draws.

In: a stage about to begin. Out: a divisor of this rank's share of the batch. Where `speed.micro_batch` is auto, a GPU
tries what fits; a CPU, where too much memory is not refused but swapped, keeps to a bound, the same on every CPU.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from config.recipe import StageConfig
from ffcv_ops.errors import UserError
from training import distributed, model, optim
from training.state import State
from training.step import Run, gradients, random_batch

CPU_BYTES = 4 << 30  # of activations
CPU_SAMPLES = 256
EVALUATED = 64  # without activations to keep, far below what training takes


def find(run: Run, state: State, stage: StageConfig) -> int:
    """Samples per forward pass: what the run says or, for auto, as many as fit."""
    word, share = run.recipe.speed.micro_batch, run.share(stage)
    if word != "auto":
        if share % word:
            wrong = f"{share} samples per process are no multiple of speed.micro_batch {word}"
            raise UserError(f"stage {stage.name}: {wrong}")
        return word
    options = choices(share, even=stage.mixing)
    if run.ranks.device.type == "cpu":
        return by_bound(state.model, stage.resolution, run.precision, options)

    def attempt(samples):
        batch = random_batch(run, stage, samples)
        gradients(run, state, stage, state.model.train(), *batch, step=0, seed=0, piece=samples)

    weights = 4 * model.count(state.model)
    moments = 0 if state.optimizer.state else optim.MOMENTS[stage.optimizer]
    images = 4 * share * 3 * stage.resolution**2  # the loader keeps up to four batches
    return by_trial(state.model, attempt, options, reserved=weights * (1 + moments) + images)


def in_evaluation(word: int | Literal["auto"], piece: int = EVALUATED) -> int:
    """Images per forward pass where nothing is learnt and `piece` samples fit in training. `word`: speed.micro_batch,
    which is the most where it is a number."""
    most = max(piece, EVALUATED)
    return most if word == "auto" else min(word, most)


def choices(share: int, *, even: bool) -> list[int]:
    """The divisors of `share`, largest first; where samples are mixed in pairs, the even ones."""
    return [n for n in range(share, 0, -1) if share % n == 0 and (n % 2 == 0 or not even)]


def by_bound(network: nn.Module, resolution: int, precision: torch.dtype, options: list[int]) -> int:
    """The largest of `options` whose activations stay within `CPU_BYTES`, or the smallest there is."""
    options = [n for n in options if n <= CPU_SAMPLES] or options[-1:]
    _, each = model.activations(network, resolution, precision)
    return next((n for n in options if n * each <= CPU_BYTES), options[-1])


def by_trial(network: nn.Module, attempt: Callable[[int], object], options: list[int], *, reserved: int) -> int:
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
