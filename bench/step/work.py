"""How much there is to compute, and how fast the device computes at best."""

import copy
import functools

import torch
from torch import nn

from bench.step.clock import Clock
from bench.step.tasks import Task
from training import cost, depth, model


class Matmul:
    """A product of square matrices, of a size that the device is fastest with; called, gives FLOP/s."""

    def __init__(self, device, precision):
        self.device, self.size = device, 8192 if device.type == "cuda" else 2048
        self.one, self.other = (torch.randn(self.size, self.size, device=device, dtype=precision) for _ in range(2))

    def __call__(self) -> float:
        repeats = 20 if self.device.type == "cuda" else 2
        clock = Clock(self.device)
        clock("start")
        for _ in range(repeats):
            self.one @ self.other
        clock("data")
        return repeats * 2 * self.size**3 / clock.phases()[0]["data"]


@functools.cache
def macs(task: Task, *, subset: bool) -> float:
    """Multiply-adds (10^9) of an image's forward pass; with `subset`, of the samples that the branches compute."""
    network = model.create(task.model, resolution=task.resolution, classes=1000, drop_path=0.0, layer_scale=1e-4)
    rest = copy.deepcopy(network)
    rest.blocks = nn.Sequential()
    whole, outside = cost.gmacs(network, task.resolution), cost.gmacs(rest, task.resolution)
    kept = depth.most_kept(task.drop_path, 0, task.batch) / task.batch if subset else 1.0
    return outside + kept * (whole - outside)
