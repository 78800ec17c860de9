"""How many threads a process takes, and what goes to a device how."""

import os

import pytest
import torch

from training import distributed


@pytest.mark.parametrize("given, processes, expected", [("3", "2", 3), ("", "2", 4), ("0", "16", 1), ("x", "1", 8)])
def test_threads_are_what_was_asked_for_or_a_share_of_the_cores(given, processes, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert distributed.threads() == expected


class Tensor:
    """Stands in for one; torch cannot pin what is not in the host's memory."""

    def __init__(self, device):
        self.device, self.pinned = torch.device(device), False

    def pin_memory(self):
        if self.device.type != "cpu":
            raise RuntimeError("cannot pin 'torch.cuda.ByteTensor' only dense CPU tensors can be pinned")
        self.pinned = True
        return self

    def to(self, device, *, non_blocking):
        return self.device.type, self.pinned, device.type, non_blocking


def test_only_what_is_in_the_hosts_memory_is_pinned():
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert distributed.to_device(Tensor("cpu"), gpu) == ("cpu", True, "cuda", True)
    on_the_gpu = Tensor("cuda:0")
    assert distributed.to_device(on_the_gpu, gpu) is on_the_gpu
    assert distributed.to_device(Tensor("cpu"), cpu) == ("cpu", False, "cpu", True)
    assert distributed.to_device(None, gpu) is None
