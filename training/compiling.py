"""torch.compile for a stage: the blocks of the model one by one, all with the same code, and the mixing of a batch.

A block takes a twelfth of the time to compile that the model takes, the twelve share it, and DDP still sums the
gradients of one block while another is computed. Only another resolution compiles anew; evaluation is not compiled.
"""

from collections.abc import Callable

import torch

from config.recipe import StageConfig
from ffcv_ops.errors import UserError
from training import distributed, micro
from training.state import State
from training.step import Run, gradients, random_batch


def compile_stage(run: Run, state: State, stage: StageConfig, piece: int, *, say: Callable[[str], object]) -> None:
    """Compiles with one random batch. Where that does not work, one line says why, and everything runs as it is."""
    network = state.model.train()
    if run.recipe.speed.cuda_graphs and piece < run.share(stage):
        wrong = f"speed.cuda_graphs takes a batch at once, not {piece} of {run.share(stage)} samples at a time"
        raise UserError(f"stage {stage.name}: {wrong}; leave it out, or use more devices")
    if run.recipe.speed.cuda_graphs:
        network.compile(mode="reduce-overhead", dynamic=False)
    else:
        for part in getattr(network, "blocks", [network]):
            part.compile(dynamic=False)
    fault = ""
    try:
        with micro.untouched(network):
            gradients(run, state, stage, network, *random_batch(run, stage, piece), step=0, seed=0, piece=piece)
    except Exception as error:  # Dynamo, Inductor, Triton and the C++ compiler have a kind each
        fault = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not distributed.all_reduce_min(int(not fault), run.ranks.device):
        torch.compiler.set_stance("force_eager")
        say(f"speed.compile: this platform cannot ({fault or 'another rank says why'}); going on without")
