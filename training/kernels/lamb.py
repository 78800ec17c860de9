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
ADDRESSES = tl.constexpr(6)  # in a row of the table, one of each of an update's tensors; the numbers come behind them
COLUMNS = tl.constexpr(12)


class Law(NamedTuple):
    """Plain numbers; `share`: of the way to the weight that its average goes in a step."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    share: float


class Update(NamedTuple):
    """The tensors of one weight, float32: `step` is a scalar, the others have its size and order of memory, without
    gaps. `average` follows the weight; None where nothing does."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    average: Tensor | None
    law: Law


def step(updates: Sequence[Update], divisor: Tensor, skip: Tensor, group=None) -> None:
    """One step with the gradients / `divisor`, in place; nothing moves where `skip` is 1. Both are float32 scalars on
    the device of all tensors. group: the processes that hold the other parts, where the tensors are sharded."""
    device = skip.device
    if not updates:
        return
    shapes, owners = _layout(tuple(update.weight.numel() for update in updates), device)
    addresses = torch.tensor([[0 if t is None else t.data_ptr() for t in update[:-1]] for update in updates])
    vectors = bool((addresses[:, [0, 1, 2, 3, 5]] % 16 == 0).all()) and all(u.weight.numel() % 4 == 0 for u in updates)
    numbers = torch.tensor([update.law for update in updates], dtype=torch.float64)
    table = distributed.to_device(torch.cat((addresses, numbers.view(torch.int64)), dim=1), device)
    sums, squares = (torch.empty((rows, 2), device=device) for rows in (len(owners), len(updates)))
    if len(owners):
        lamb_moments[(len(owners),)](table, shapes, owners, sums, divisor, skip, VECTORS=vectors)
    lamb_lengths[(len(updates),)](table, shapes, sums, squares, skip)
    if group is not None:
        torch.distributed.all_reduce(squares, group=group)
    if len(owners):
        lamb_apply[(len(owners),)](table, shapes, owners, squares, skip, VECTORS=vectors)


@functools.lru_cache(maxsize=8)
def _layout(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where tensors of so many weights are cut. Returns (weights, first chunk) of each, with a row for the end, int64,
    and the tensor that each chunk is of, int32."""
    chunks = torch.tensor([-(-count // CHUNK.value) for count in counts], dtype=torch.int64)
    first = torch.cat((torch.zeros(1, dtype=torch.int64), chunks.cumsum(0)))
    owners = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(chunks)
    return torch.stack((torch.tensor([*counts, 0]), first), dim=1).to(device), owners.to(device)


@triton.jit
def _tensor(table, owner, column: tl.constexpr, VECTORS: tl.constexpr):
    address = tl.load(table + owner * COLUMNS + column).to(tl.pointer_type(tl.float32), bitcast=True)
    if VECTORS:  # a thread then reads 16 bytes at once
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _number(table, owner, place: tl.constexpr):
    """float64: that of the `Law` at this place."""
    return tl.load(table + owner * COLUMNS + ADDRESSES + place).to(tl.float64, bitcast=True)


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
def _direction(p, m, v, step, table, owner):
    t = step.to(tl.float64)  # 1 - .999^t has three digits less than .999^t
    first = (1 - tl.exp(t * tl.log(_number(table, owner, 1)))).to(tl.float32)
    second = (1 - tl.exp(t * tl.log(_number(table, owner, 2)))).to(tl.float32)
    eps, decay = _number(table, owner, 3).to(tl.float32), _number(table, owner, 4).to(tl.float32)
    return m / first / (tl.sqrt(v) / tl.sqrt(second) + eps) + decay * p


@triton.jit
def _toward(old, new, beta):
    """The moving average of two float32 values; beta: float64."""
    return beta.to(tl.float32) * old + (1 - beta).to(tl.float32) * new


@triton.jit
def lamb_moments(table, shapes, owners, sums, divisor, skip, VECTORS: tl.constexpr):
    """A program for each chunk. sums: float32 [chunks, 2], of p^2 and u^2."""
    if tl.load(skip) == 0:
        chunk = tl.program_id(0)
        owner = tl.load(owners + chunk)
        x, inside = _place(shapes, owner, VECTORS)
        M, V = _tensor(table, owner, 2, VECTORS), _tensor(table, owner, 3, VECTORS)
        p = tl.load(_tensor(table, owner, 0, VECTORS) + x, inside, other=0.0)
        g = tl.load(_tensor(table, owner, 1, VECTORS) + x, inside, other=0.0) / tl.load(divisor)
        m = _toward(tl.load(M + x, inside, other=0.0), g, _number(table, owner, 1))
        v = _toward(tl.load(V + x, inside, other=0.0), g * g, _number(table, owner, 2))
        tl.store(M + x, m, inside)
        tl.store(V + x, v, inside)
        step = tl.load(_tensor(table, owner, 4, False)) + 1
        u = tl.where(inside, _direction(p, m, v, step, table, owner), 0.0)
        tl.store(sums + 2 * chunk, tl.sum(p * p))
        tl.store(sums + 2 * chunk + 1, tl.sum(u * u))


@triton.jit
def lamb_lengths(table, shapes, sums, squares, skip):
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
        STEP = _tensor(table, owner, 4, False)
        tl.store(STEP, tl.load(STEP) + 1)


@triton.jit
def lamb_apply(table, shapes, owners, squares, skip, VECTORS: tl.constexpr):
    """A program for each chunk."""
    if tl.load(skip) == 0:
        owner = tl.load(owners + tl.program_id(0))
        x, inside = _place(shapes, owner, VECTORS)
        P, A = _tensor(table, owner, 0, VECTORS), _tensor(table, owner, 5, VECTORS)
        p = tl.load(P + x, inside, other=0.0)
        m = tl.load(_tensor(table, owner, 2, VECTORS) + x, inside, other=0.0)
        v = tl.load(_tensor(table, owner, 3, VECTORS) + x, inside, other=0.0)
        of_p, of_u = tl.load(squares + 2 * owner), tl.load(squares + 2 * owner + 1)
        trusts = (_number(table, owner, 4) != 0) & (of_p > 0) & (of_u > 0)
        ratio = tl.where(trusts, tl.sqrt(of_p) / tl.sqrt(tl.where(trusts, of_u, 1.0)), 1.0)
        step = tl.load(_tensor(table, owner, 4, False))
        p -= _number(table, owner, 0).to(tl.float32) * ratio * _direction(p, m, v, step, table, owner)
        tl.store(P + x, p, inside)
        if tl.load(table + owner * COLUMNS + 5) != 0:
            a = tl.load(A + x, inside, other=0.0)
            tl.store(A + x, a + _number(table, owner, 5).to(tl.float32) * (p - a), inside)
