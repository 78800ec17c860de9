"""torch.compile for a stage: the blocks of the model one by one, all with the same code, and the mixing of a batch.

A block takes a twelfth of the time to compile that the model takes, the twelve share it, and DDP still sums the
gradients of one block while another is computed. Only another resolution compiles anew; evaluation is not compiled.
"""

from collections.abc import Callable

import torch

from ffcv_ops.errors import BadInput
from training import distributed, micro
from training.recipe import Stage
from training.state import State
from training.step import Job, gradients, random_batch


def compile_stage(job: Job, state: State, stage: Stage, piece: int, *, say: Callable[[str], object]) -> None:
    """Compiles with one random batch. Where that does not work, one line says why, and everything runs as it is."""
    network = state.model.train()
    if job.run.speed.cuda_graphs and piece < job.share(stage):
        wrong = f"speed.cuda_graphs takes a batch at once, not {piece} of {job.share(stage)} samples at a time"
        raise BadInput(f"stage {stage.name}: {wrong}; leave it out, or use more devices")
    if job.run.speed.cuda_graphs:
        network.compile(mode="reduce-overhead", dynamic=False)
    else:
        for part in getattr(network, "blocks", [network]):
            part.compile(dynamic=False)
    fault = ""
    try:
        with micro.untouched(network):
            gradients(job, state, stage, network, *random_batch(job, stage, piece), step=0, seed=0, piece=piece)
    except Exception as error:  # Dynamo, Inductor, Triton and the C++ compiler have a kind each
        fault = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not distributed.least_over_ranks(int(not fault), job.ranks.device):
        torch.compiler.set_stance("force_eager")
        say(f"speed.compile: this platform cannot ({fault or 'another rank says why'}); going on without")
