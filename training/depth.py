"""Stochastic depth whose draws are arguments: which sample skips which branch follows from (seed, step, position).

timm's DropPath draws from torch's global generator, so its masks depend on what was drawn before and on how a batch
was split. Here each step hands every branch the masks of the samples in this micro-batch; a global batch has the same
masks on one GPU, on eight, in one piece or in many, and after a restart.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ffcv_ops import draws
from ffcv_ops.compiled import kernel


class StochasticDepth(nn.Module):
    """Scales the residual branch of each sample by 0 or 1 / (1 - rate); the identity in evaluation.

    x: (samples, tokens, channels). `scale`, (samples,), is set by `set_masks` before each forward pass in training.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@kernel
def _masks(rates, seed, step, first, samples):
    """float32 [branches, samples]: 0 with probability `rates[branch]`, else 1 / (1 - that)."""
    branches = len(rates)
    scale = np.empty((branches, samples), np.float32)
    for branch in range(branches):
        for i in range(samples):
            kept = draws.uniform(seed, (first + i) * branches + branch, draws.DEPTH + step) >= rates[branch]
            scale[branch, i] = 1.0 / (1.0 - rates[branch]) if kept else 0.0
    return scale


def branches(model: nn.Module) -> list[StochasticDepth]:
    """The model's stochastic residual branches, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def set_masks(stochastic: list[StochasticDepth], *, seed: int, step: int, first: int, samples: int, device) -> None:
    """Draws the masks of samples first .. first + samples - 1 of the global batch of `step`."""
    if not stochastic:
        return
    rates = np.array([branch.rate for branch in stochastic])
    scale = torch.from_numpy(_masks(rates, seed, step, first, samples))
    if device.type == "cuda":
        scale = scale.pin_memory().to(device, non_blocking=True)
    for branch, row in zip(stochastic, scale, strict=True):
        branch.scale = row
