"""LAMB, and the average of the weights, in two passes over memory for all tensors together. The formula: optim.Lamb.

`lamb_moments` reads weights, gradients and moments and writes the moments; `lamb_apply` reads weights, moments and
averages, makes the same direction again, and writes weights and averages: 24 bytes a weight each. Between them
`lamb_lengths` adds up |p|^2 and |u|^2 of each tensor, from two numbers a chunk and in order: the same bits each time.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from training import distributed

CHUNK = tl.constexpr(4096)  # weights that a program handles
CHUNKS = tl.constexpr(1024)  # whose sums are added at once
COLUMNS = tl.constexpr(6)  # of the table of addresses, a row for each `Update`


class Update(NamedTuple):
    """The tensors of one weight, float32: `step` is a scalar, the others have its size and order of memory, without
    gaps. `average` follows the weight; None where nothing does."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    average: Tensor | None


class Law(NamedTuple):
    """Plain numbers; `share`: of the way to the weights that averages go in a step."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    share: float


def step(updates: Sequence[Update], law: Law, divisor: Tensor, skip: Tensor, group=None) -> None:
    """One step with the gradients / `divisor`, in place; nothing moves where `skip` is 1. Both are float32 scalars on
    the device of all tensors. group: the processes that hold the other parts, where the tensors are sharded."""
    device = skip.device
    if not updates:
        return
    shapes, owners = _layout(tuple(update.weight.numel() for update in updates), device)
    addresses = torch.tensor([[0 if t is None else t.data_ptr() for t in update] for update in updates])
    vectors = bool((addresses[:, [0, 1, 2, 3, 5]] % 16 == 0).all()) and all(u.weight.numel() % 4 == 0 for u in updates)
    addresses = distributed.to_device(addresses, device)
    sums, squares = (torch.empty((rows, 2), device=device) for rows in (len(owners), len(updates)))
    fixed = {"BETA1": law.beta1, "BETA2": law.beta2, "EPS": law.eps, "VECTORS": vectors}
    if len(owners):
        lamb_moments[(len(owners),)](addresses, shapes, owners, sums, divisor, skip, law.decay, **fixed)
    lamb_lengths[(len(updates),)](addresses, shapes, sums, squares, skip)
    if group is not None:
        torch.distributed.all_reduce(squares, group=group)
    if len(owners):
        law = (law.lr, law.decay, law.share)
        lamb_apply[(len(owners),)](addresses, shapes, owners, squares, skip, *law, **fixed)


@functools.lru_cache(maxsize=8)
def _layout(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where tensors of so many weights are cut. Returns (weights, first chunk) of each, with a row for the end, int64,
    and the tensor that each chunk is of, int32."""
    chunks = torch.tensor([-(-count // CHUNK.value) for count in counts], dtype=torch.int64)
    first = torch.cat((torch.zeros(1, dtype=torch.int64), chunks.cumsum(0)))
    owners = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(chunks)
    return torch.stack((torch.tensor([*counts, 0]), first), dim=1).to(device), owners.to(device)


@triton.jit
def _tensor(addresses, owner, column: tl.constexpr, VECTORS: tl.constexpr):
    address = tl.load(addresses + owner * COLUMNS + column).to(tl.pointer_type(tl.float32), bitcast=True)
    if VECTORS:  # a thread then reads 16 bytes at once
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _place(shapes, owner, VECTORS: tl.constexpr):
    """The chunk's places in its tensor, and which of them are within."""
    count = tl.load(shapes + 2 * owner)
    start = (tl.program_id(0) - tl.load(shapes + 2 * owner + 1)) * CHUNK
    if VECTORS:
        count = tl.multiple_of(count, 4)
    x = start + tl.arange(0, CHUNK)
    return x, x < count


@triton.jit
def _direction(p, m, v, step, decay, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr):
    t = step.to(tl.float64)  # 1 - .999^t has three digits less than .999^t
    first = 1 - tl.exp(t * tl.log(tl.full((), BETA1, tl.float64)))
    second = 1 - tl.exp(t * tl.log(tl.full((), BETA2, tl.float64)))
    return m / first.to(tl.float32) / (tl.sqrt(v) / tl.sqrt(second.to(tl.float32)) + EPS) + decay * p


@triton.jit
def lamb_moments(
    addresses, shapes, owners, sums, divisor, skip, decay,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """A program for each chunk. sums: float32 [chunks, 2], of p^2 and u^2."""
    if tl.load(skip) == 0:
        chunk = tl.program_id(0)
        owner = tl.load(owners + chunk)
        x, inside = _place(shapes, owner, VECTORS)
        M, V = _tensor(addresses, owner, 2, VECTORS), _tensor(addresses, owner, 3, VECTORS)
        p = tl.load(_tensor(addresses, owner, 0, VECTORS) + x, inside, other=0.0)
        g = tl.load(_tensor(addresses, owner, 1, VECTORS) + x, inside, other=0.0) / tl.load(divisor)
        m = BETA1 * tl.load(M + x, inside, other=0.0) + (1 - BETA1) * g
        v = BETA2 * tl.load(V + x, inside, other=0.0) + (1 - BETA2) * g * g
        tl.store(M + x, m, inside)
        tl.store(V + x, v, inside)
        step = tl.load(_tensor(addresses, owner, 4, False)) + 1
        u = tl.where(inside, _direction(p, m, v, step, decay, BETA1, BETA2, EPS), 0.0)
        tl.store(sums + 2 * chunk, tl.sum(p * p))
        tl.store(sums + 2 * chunk + 1, tl.sum(u * u))


@triton.jit
def lamb_lengths(addresses, shapes, sums, squares, skip):
    """A program for each tensor, which also counts the step. squares: float32 [tensors, 2], the sums of its chunks."""
    if tl.load(skip) == 0:
        owner = tl.program_id(0)
        end = tl.load(shapes + 2 * owner + 3)
        of_p, of_u = tl.zeros((CHUNKS,), tl.float32), tl.zeros((CHUNKS,), tl.float32)
        for chunk in range(tl.load(shapes + 2 * owner + 1), end, CHUNKS):
            x = chunk + tl.arange(0, CHUNKS)
            of_p += tl.load(sums + 2 * x, x < end, other=0.0)
            of_u += tl.load(sums + 2 * x + 1, x < end, other=0.0)
        tl.store(squares + 2 * owner, tl.sum(of_p))
        tl.store(squares + 2 * owner + 1, tl.sum(of_u))
        STEP = _tensor(addresses, owner, 4, False)
        tl.store(STEP, tl.load(STEP) + 1)


@triton.jit
def lamb_apply(
    addresses, shapes, owners, squares, skip, lr, decay, share,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """A program for each chunk."""
    if tl.load(skip) == 0:
        owner = tl.load(owners + tl.program_id(0))
        x, inside = _place(shapes, owner, VECTORS)
        P, A = _tensor(addresses, owner, 0, VECTORS), _tensor(addresses, owner, 5, VECTORS)
        p = tl.load(P + x, inside, other=0.0)
        m = tl.load(_tensor(addresses, owner, 2, VECTORS) + x, inside, other=0.0)
        v = tl.load(_tensor(addresses, owner, 3, VECTORS) + x, inside, other=0.0)
        of_p, of_u = tl.load(squares + 2 * owner), tl.load(squares + 2 * owner + 1)
        trusts = (decay != 0) & (of_p > 0) & (of_u > 0)
        ratio = tl.where(trusts, tl.sqrt(of_p) / tl.sqrt(tl.where(trusts, of_u, 1.0)), 1.0)
        step = tl.load(_tensor(addresses, owner, 4, False))
        p -= lr * ratio * _direction(p, m, v, step, decay, BETA1, BETA2, EPS)
        tl.store(P + x, p, inside)
        if tl.load(addresses + owner * COLUMNS + 5) != 0:
            a = tl.load(A + x, inside, other=0.0)
            tl.store(A + x, a + share * (p - a), inside)
