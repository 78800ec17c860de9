"""One process or several: torchrun's environment -> rank, world and device. Nothing else asks the environment.

`torchrun --nproc-per-node=8 train_imagenet.py ...` on GPUs (nccl) or CPUs (gloo); plain `python` is a world of one.
"""

import os
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from ffcv_ops import host
from ffcv_ops.errors import UserError


class Ranks(NamedTuple):
    """This process among all: its number, how many there are, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the console."""
        return self.rank == 0


def init_process_group(device: str, *, patience: float | None = None) -> Ranks:
    """Joins the other processes. `device`: auto (cuda where there is one), cpu or cuda. `patience`: minutes until the
    watchdog ends a run that does not move, which torch must not do before it with less to say."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(f"speed.device cuda: process {local_rank} of this machine has no GPU ({found} found)")
        torch.cuda.set_device(local_rank)
        torch.set_float32_matmul_precision("high")  # TF32 where something is left in float32
    if kind == "cpu":
        torch.set_num_threads(threads())
    here = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if world > 1:
        timeout = None if patience is None else timedelta(minutes=patience + 10)
        distributed.init_process_group(
            "nccl" if kind == "cuda" else "gloo", timeout=timeout, device_id=here if kind == "cuda" else None
        )
    return Ranks(rank, world, here)


def threads() -> int:
    """Threads for a process that computes on the CPU: what OMP_NUM_THREADS says (torchrun sets 1), or this process's
    share of the cores. To import ffcv leaves torch with one."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else host.cores_per_process()


def destroy_process_group() -> None:
    """Leaves the group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def barrier() -> None:
    """Returns when every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def all_true(condition: torch.Tensor) -> torch.Tensor:
    """Whether the scalar `condition`, on the device, is true in all processes: a scalar on the device."""
    if not distributed.is_initialized():
        return condition
    number = condition.float()
    distributed.all_reduce(number, distributed.ReduceOp.MIN)
    return number > 0


def all_reduce_min(number: int, device: torch.device) -> int:
    """The smallest of the numbers that the processes give."""
    least = torch.tensor(number, device=device)
    if distributed.is_initialized():
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
    return int(least)


def all_reduce_total(number: int, device: torch.device) -> int:
    """The sum of the numbers that the processes give."""
    return all_reduce_sum(torch.tensor(number, device=device)).tolist() if distributed.is_initialized() else number


def broadcast_object(value):
    """What the first process gives, a plain value, in all of them."""
    if not distributed.is_initialized():
        return value
    held = [value]
    distributed.broadcast_object_list(held)
    return held[0]


def to_device(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """The tensor on the device; from pinned memory, so that the host need not wait for a GPU."""
    if tensor is None or tensor.device.type == device.type != "cpu":
        return tensor
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def full_state_dict(value, *, is_main: bool):
    """Nested state with its sharded tensors in one piece, in the memory of the `first` rank's host; None in the others.
    All ranks must come here together."""
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if is_main else None
    if isinstance(value, dict):
        return {key: full_state_dict(item, is_main=is_main) for key, item in value.items()}
    return value
