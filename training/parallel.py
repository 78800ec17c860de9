"""One model on several devices: DDP, where each holds all of it, or FSDP2, where each holds a part of every tensor.

A state is begun, restored and saved whole; `distribute` comes between. Both ways sum the same gradients and give the
same steps within rounding, and a checkpoint of one goes on under the other, on any number of ranks.
"""

from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from training import optim
from training.distributed import Ranks
from training.state import State


def distribute(state: State, stage, ranks: Ranks, how: str, *, accumulates: bool) -> nn.Module:
    """The model as the training loop calls it. `how`: ddp or fsdp; the latter shards the state in place.

    DDP cannot take the graph as static when the first backward pass is one without a sum over the ranks.
    """
    if ranks.world == 1:
        return state.model
    if how == "fsdp":
        _shard(state, stage, ranks)
        return state.model
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        state.model, device_ids=devices, gradient_as_bucket_view=True, static_graph=not accumulates
    )


def _shard(state, stage, ranks):
    """Each block is gathered when it is needed; in float32, as autocast's own casts give DDP's numbers."""
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for module in filter(None, (state.model, state.average)):
        for block in getattr(module, "blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    before = state.optimizer.state_dict()
    state.optimizer = optim.build(state.model, stage)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    parts = {
        k: {name: _part(value, parameters[k]) for name, value in kept.items()} for k, kept in before["state"].items()
    }
    state.optimizer.load_state_dict(before | {"state": parts})


def _part(value, parameter):
    if value.shape != parameter.shape:  # the counter of steps
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


@contextmanager
def summing(forward: nn.Module, *, last: bool):
    """The forward and backward pass of one piece of a batch; with the last one the gradients are summed over ranks."""
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(last)
        yield
    elif isinstance(forward, DistributedDataParallel) and not last:
        with forward.no_sync():
            yield
    else:
        yield


@contextmanager
def gathered(model: nn.Module):
    """A sharded model in one piece, so that the ranks may call it different numbers of times; others as they are."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(part is not model, recurse=False)
        part.reshard()
