"""Triton kernels for CUDA devices. What they do is also said in torch's operations, which CPUs run."""

import functools
import sys

import torch


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether Triton compiles and runs kernels on `device`, tried once. Where a GPU cannot, one line says why."""
    if device.type != "cuda":
        return False
    try:
        _try(device)
    except Exception as error:  # no Triton, no C compiler, an old GPU: each has exceptions of its own
        fault = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        print(f"{device}: Triton cannot ({fault}); torch's own operations take its place", file=sys.stderr)
        return False
    return True


def _try(device):
    """A step with a weight, before anything of a run is touched."""
    from training.kernels import lamb

    weight, zero = torch.ones(4, device=device), torch.zeros((), device=device)
    law = lamb.Law(0.0, 0.9, 0.999, 1e-8, 0.0, 0.0)
    update = lamb.Update(weight, weight.clone(), weight.clone(), weight.clone(), zero.clone(), None, law)
    lamb.step([update], zero + 1, zero)
