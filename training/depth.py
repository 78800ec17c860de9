"""Stochastic depth whose draws are arguments: which sample skips which branch follows from (seed, step, position).

timm's DropPath draws from torch's global generator, so its masks depend on what was drawn before and on how a batch
was split. Here each step hands every branch the masks of the samples in this micro-batch; a global batch has the same
masks on one GPU, on eight, in one piece or in many, and after a restart.

Two laws, `speed.drop_path`:

exact:  each sample alone skips the branch with probability `rate`, as in the paper's code. All samples are computed.
subset: the branch computes only the samples that it keeps (the idea is DINOv2's). A sample still skips it with
        probability `rate` and is scaled by 1 / (1 - rate), but of n samples as close to n (1 - rate) as can be are
        kept, so that the work is the same in each step. It is shared out in groups of 16 places of the global batch,
        with random samples in each: pieces of a multiple of 16 samples compute at most one sample too many.
"""

import math

import numpy as np
import torch
from timm.models import vision_transformer
from torch import Tensor, nn

from ffcv_ops import rng
from ffcv_ops.compiled import kernel
from ffcv_ops.rng import RandomKey
from training.distributed import to_device

GROUP = 16  # places of the global batch
_NOWHERE = 1 << 40  # a place that no global batch has: its draw is the group counts'


class StochasticDepth(nn.Module):
    """Scales the residual branch of each sample by 0 or 1 / (1 - rate); the identity in evaluation.

    x: (samples, tokens, channels). `set_masks` sets before each forward pass in training: `kept`, the samples that are
    computed, (n,) int64, or None for all, and `scale`, their factors, (n,) float32.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Block(vision_transformer.Block):
    """timm's transformer block; where its stochastic depth keeps a subset, the branches see those samples only."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        def attend(x):
            return self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))

        x = _add_branch(x, attend, self.drop_path1)
        return _add_branch(x, lambda x: self.ls2(self.mlp(self.norm2(x))), self.drop_path2)


def _add_branch(x, branch, drop):
    if not drop.training or getattr(drop, "kept", None) is None:
        return x + drop(branch(x))
    return x.index_add(0, drop.kept, drop(branch(x[drop.kept])).to(x.dtype))


@kernel
def _masks(rates, seed, step, first, samples):
    """float32 [branches, samples]: 0 with probability `rates[branch]`, else 1 / (1 - that)."""
    branches = len(rates)
    scale = np.empty((branches, samples), np.float32)
    for branch in range(branches):
        for i in range(samples):
            kept = rng.uniform(RandomKey(seed, (first + i) * branches + branch), rng.DEPTH + step) >= rates[branch]
            scale[branch, i] = 1.0 / (1.0 - rates[branch]) if kept else 0.0
    return scale


@kernel
def _even_masks(rates, seed, step, first, samples):
    """The same; of each group those with the largest of the same draws are kept, and as many as make the count of all
    places up to any group's end differ from its mean by less than 1."""
    branches = len(rates)
    scale = np.zeros((branches, samples), np.float32)
    numbers = np.empty(GROUP)
    for branch in range(branches):
        share = 1.0 - rates[branch]
        start = rng.uniform(RandomKey(seed, _NOWHERE * branches + branch), rng.DEPTH + step)
        for group in range(first // GROUP, (first + samples + GROUP - 1) // GROUP):
            low = group * GROUP
            count = math.floor(start + (low + GROUP) * share) - math.floor(start + low * share)
            for k in range(GROUP):
                numbers[k] = rng.uniform(RandomKey(seed, (low + k) * branches + branch), rng.DEPTH + step)
            for k in range(GROUP):
                larger = 0
                for other in range(GROUP):
                    larger += numbers[other] > numbers[k]
                if larger < count and first <= low + k < first + samples:
                    scale[branch, low + k - first] = 1.0 / share
    return scale


def branches(model: nn.Module) -> list[StochasticDepth]:
    """The model's stochastic residual branches, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def has_subsets(model: nn.Module) -> bool:
    """Whether every stochastic branch of the model is one of a `Block`, which can leave samples out."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return len(branches(model)) == sum(len(branches(block)) for block in blocks)


def set_masks(
    stochastic: list[StochasticDepth], *, seed: int, step: int, first: int, samples: int, device, subset: bool = False
) -> None:
    """Draws the masks of samples first .. first + samples - 1 of the global batch of `step`."""
    if not stochastic:
        return
    rates = np.array([branch.rate for branch in stochastic])
    scale = (_even_masks if subset else _masks)(rates, seed, step, first, samples)
    sizes = [most_kept(rate, first, samples) if subset else samples for rate in rates]
    if min(sizes) == samples:
        for branch, factors in zip(stochastic, _send(scale, device), strict=True):
            branch.kept, branch.scale = None, factors
        return
    order = np.argsort(scale == 0, axis=1, kind="stable")[:, : max(sizes)]  # the kept ones, and then some others
    rows = zip(_send(order, device), _send(np.take_along_axis(scale, order, axis=1), device), strict=True)
    for branch, size, (kept, factors) in zip(stochastic, sizes, rows, strict=True):
        branch.kept, branch.scale = kept[:size], factors[:size]


def most_kept(rate: float, first: int, samples: int) -> int:
    """An upper bound, the same in every step, of the samples that `subset` keeps of first .. first + samples - 1."""
    groups = max((first + samples) // GROUP - -(-first // GROUP), 0)
    return min(math.ceil(groups * GROUP * (1 - rate) - 1e-9) + samples - groups * GROUP, samples)


def _send(array, device):
    return to_device(torch.from_numpy(array), device)
