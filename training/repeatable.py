"""`speed.deterministic`: a GPU's kernels that add in the same order each time, where torch has such."""

import os
from contextlib import contextmanager

import torch

from ffcv_ops.errors import UserError


def make_deterministic() -> None:
    """From now on in this process an operation that cannot repeat its bits is an error. To be called before anything is
    done on a GPU, as cuBLAS reads its environment once."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for bugs only, and a pass over all new memory
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass adds in any order; those of the others need not
    from torch._inductor import config  # half a second

    if hasattr(config, "deterministic"):  # torch >= 2.9: the size of its blocks is not the fastest in a trial
        config.deterministic = True


@contextmanager
def explained():
    """Within, an operation that torch cannot repeat is a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
        if not refused:
            raise
        raise UserError(
            f"speed.deterministic: torch has no deterministic {operation}, which this model needs; leave it out"
        ) from error
