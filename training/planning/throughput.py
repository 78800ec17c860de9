"""How fast a step is, measured."""

import time
from collections.abc import Callable

import torch


def throughput(step: Callable[[], object], samples: int, device: torch.device) -> float:
    """Images per second of `step`, which trains on `samples` of them: two to start, then up to ten steps or 20 s."""
    for _ in range(2):
        step()
    _wait(device)
    began, steps = time.perf_counter(), 0
    while steps < 10 and time.perf_counter() - began < 20:
        step()
        steps += 1
    _wait(device)
    return samples * steps / (time.perf_counter() - began)


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
