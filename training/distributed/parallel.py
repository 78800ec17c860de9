"""One model on several devices: DDP, where each holds all of it, or FSDP2, where each holds a part of every tensor.

A stage is made, restored and saved whole; `shard` and `wrap` come between, and the compiler between them: what it made
of blocks that are not sharded yet would not serve those that are. Both ways average the same gradients and give the
same steps within rounding, and a checkpoint of one goes on under the other, on any number of ranks.
"""

from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from training import optim
from training.run import Run
from training.stage import Stage


def wrap(run: Run, stage: Stage) -> None:
    """Sets `stage.network`, the model as the training loop calls it: itself, also where it is sharded, or in DDP."""
    ranks, stage.network = run.ranks, stage.model
    if ranks.world == 1 or run.recipe.speed.parallel == "fsdp":
        return
    # DDP cannot take the graph as static when the first backward pass is one without a sum over the ranks.
    accumulates = stage.micro_batch_size < run.local_batch_size(stage.config)
    stage.network = DistributedDataParallel(
        stage.model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=not accumulates,
    )


def shard(run: Run, stage: Stage) -> None:
    """With fsdp: model, average and optimizer are sharded in place. Each block is gathered when it is needed; in
    float32, as autocast's own casts give DDP's numbers."""
    ranks = run.ranks
    if ranks.world == 1 or run.recipe.speed.parallel != "fsdp":
        return
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for module in filter(None, (stage.model, stage.ema)):
        for block in getattr(module, "blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    before = stage.optimizer.state_dict()
    stage.optimizer = optim.build(stage.model, stage.config)
    parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
    parts = {
        k: {name: _part(value, parameters[k]) for name, value in kept.items()} for k, kept in before["state"].items()
    }
    stage.optimizer.load_state_dict(before | {"state": parts})


def _part(value, parameter):
    if value.shape != parameter.shape:  # the counter of steps
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


@contextmanager
def gradient_sync(network: nn.Module, *, on: bool):
    """The forward and backward pass of one micro-batch; `on`, after the last one, averages gradients over the ranks."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(on)
        yield
    elif isinstance(network, DistributedDataParallel) and not on:
        with network.no_sync():
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
