"""Stochastic depth whose draws are arguments: which sample skips which branch follows from (seed, step, position).

timm's DropPath draws from torch's global generator, so its masks depend on what was drawn before and on how a batch
was split. Here each step hands every branch the masks of the samples in this micro-batch; a global batch has the same
masks on one GPU, on eight, in one piece or in many, and after a restart.

Two modes, `speed.drop_path`:

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

GROUP = 16  # places of the global batch
_NOWHERE = 1 << 40  # a place that no global batch has: its draw is the group counts'


class StochasticDepth(nn.Module):
    """Scales the residual branch of each sample by 0 or 1 / (1 - rate); the identity in evaluation.

    x: (samples, tokens, channels). `DepthMasks` sets before each forward pass in training: `kept`, the samples that are
    computed, (n,) int64, or None for all, and `scale`, their factors, (n,) float32; `place`, (samples,) int64, where a
    sample is among the kept ones, n or more for those that are not.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None
        self.kept: Tensor | None = None
        self.place: Tensor | None = None

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
    return _Put.apply(x, drop(branch(_Take.apply(x, drop.kept, drop.place))), drop.kept, drop.place)


class _Take(torch.autograd.Function):
    """The rows `kept` of x. Its backward pass gathers too: autograd's own would add into zeros, which on a GPU takes
    atomic additions and a pass over memory more, and which torch.compile fuses with nothing."""

    @staticmethod
    def forward(x, kept, place):
        return x[kept]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, grad):
        return _by_place(grad, *ctx.saved_tensors), None, None


class _Put(torch.autograd.Function):
    """x with `rows` added to its rows `kept`."""

    @staticmethod
    def forward(x, rows, kept, place):
        return x + _by_place(rows, place).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx, grad):
        (kept,) = ctx.saved_tensors
        return grad, grad[kept].to(ctx.dtype), None, None


def _by_place(rows, place):
    """Of each sample its row, or zeros where it has none."""
    there = (place < len(rows)).view(-1, *[1] * (rows.ndim - 1))
    return torch.where(there, rows[place.clamp(max=len(rows) - 1)], 0)


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


class DepthMasks:
    """The masks of all stochastic branches of a model, in buffers that stay where they are.

    torch.compile takes the tensors that modules hold for static: CUDA graphs are recorded anew when their addresses
    change, and kernels may read in steps of the 16 bytes to which the first branch's are aligned. So each size of a
    micro-batch has one buffer for all branches, with rows of a multiple of 16 bytes, and a step only copies into it.
    """

    ALIGNED = 4  # float32 values in 16 bytes; twice that for int64

    def __init__(self, model: nn.Module, *, subset: bool):
        self.branches, self.subset = branches(model), subset
        self.rates = np.array([branch.rate for branch in self.branches])
        self.buffers = {}  # by samples of a micro-batch: (scale, (kept, place)), on the device
        self.views = {}  # by (samples, kept samples of each branch)

    def set(self, seed: int, step: int, first: int, samples: int, device: torch.device) -> None:
        """Draws the masks of samples first .. first + samples - 1 of the global batch of `step`."""
        if not self.branches:
            return
        scale = (_even_masks if self.subset else _masks)(self.rates, seed, step, first, samples)
        sizes = tuple(most_kept(rate, first, samples) if self.subset else samples for rate in self.rates)
        scales, orders = self._buffers(samples, device)
        if min(sizes) < samples:
            order = np.argsort(scale == 0, axis=1, kind="stable")  # the kept ones in front
            scale = np.take_along_axis(scale, order, axis=1)
            self._copy(np.stack((order, np.argsort(order, axis=1))), orders)
        self._copy(scale, scales)
        for branch, views in zip(self.branches, self._views(samples, sizes), strict=True):
            branch.scale, branch.kept, branch.place = views

    def _buffers(self, samples, device):
        if samples not in self.buffers:
            shape = (len(self.branches), -(-samples // self.ALIGNED) * self.ALIGNED)
            self.buffers[samples] = (
                torch.zeros(shape, dtype=torch.float32, device=device),
                torch.zeros((2, *shape), dtype=torch.int64, device=device) if self.subset else None,
            )
        return self.buffers[samples]

    def _views(self, samples, sizes):
        """(scale, kept, place) of each branch, the same objects in every step; None, None where all are computed."""
        if (samples, sizes) not in self.views:
            scales, orders = self.buffers[samples]
            subset = min(sizes) < samples
            self.views[samples, sizes] = [
                (scales[k, :n], *((orders[0, k, :n], orders[1, k, :samples]) if subset else (None, None)))
                for k, n in enumerate(sizes)
            ]
        return self.views[samples, sizes]

    def _copy(self, array, buffer):
        """One transfer of contiguous, pinned memory: from any other the host would wait for the device."""
        padded = np.zeros(buffer.shape, array.dtype)
        padded[..., : array.shape[-1]] = array
        source = torch.from_numpy(padded)
        buffer.copy_(source.pin_memory() if buffer.device.type == "cuda" else source, non_blocking=True)


def most_kept(rate: float, first: int, samples: int) -> int:
    """An upper bound, the same in every step, of the samples that `subset` keeps of first .. first + samples - 1."""
    groups = max((first + samples) // GROUP - -(-first // GROUP), 0)
    return min(math.ceil(groups * GROUP * (1 - rate) - 1e-9) + samples - groups * GROUP, samples)
