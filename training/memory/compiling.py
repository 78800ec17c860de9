"""torch.compile for a stage: the blocks of the model one by one, all with the same code, and the mixing of a batch.

A block takes a twelfth of the time to compile that the model takes, the twelve share it, and DDP still averages the
gradients of one block while another is computed. Only another resolution compiles anew; evaluation is not compiled.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ffcv_ops import mixing
from ffcv_ops.errors import UserError
from training import distributed
from training.memory.micro_batch import random_batch, untouched
from training.run import Run
from training.stage import Stage


def compile_stage(
    run: Run,
    stage: Stage,
    forward_backward: Callable[[Run, Stage, Tensor, Tensor], Tensor],
    *,
    say: Callable[[str], object],
) -> None:
    """Compiles with one random batch. Where that does not work, one line says why, and everything runs as it is. The
    model is sharded already, if it is to be, but not in DDP, which would average the gradients."""
    speed, size, local_batch_size = run.recipe.speed, stage.micro_batch_size, run.local_batch_size(stage.config)
    if speed.cuda_graphs and size < local_batch_size:
        wrong = f"speed.cuda_graphs takes a batch at once, not {size} of {local_batch_size} samples at a time"
        raise UserError(f"stage {stage.config.name}: {wrong}; leave it out, or use more devices")
    # Dynamo keeps eight compiled versions of a function in a process and then runs it eagerly. All stages share the
    # code of a block, so what earlier stages compiled is forgotten.
    torch.compiler.reset()
    stage.mix = torch.compile(mixing.mix, dynamic=False)
    network = stage.model.train()
    tunes = speed.compile == "max-autotune"
    if speed.cuda_graphs:
        network.compile(mode="max-autotune" if tunes else "reduce-overhead", dynamic=False)
    else:
        for block in getattr(network, "blocks", [network]):
            block.compile(mode="max-autotune-no-cudagraphs" if tunes else None, dynamic=False)

    def compiler():
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8, device=run.ranks.device))

    def trial():
        with untouched(network):
            batch = random_batch(run, stage.config, size, stage.model_side)
            forward_backward(run, replace(stage, network=network), *batch)

    # Ranks that share weights need each other in a trial: a rank without a compiler must be found before it.
    attempts = (compiler, trial) if isinstance(network, FSDPModule) else (trial,)
    for attempt in attempts:
        fault = _fault(attempt)
        if not distributed.all_reduce_min(int(not fault), run.ranks.device):
            torch.compiler.set_stance("force_eager")
            say(f"speed.compile: this platform cannot ({fault or 'another rank says why'}); going on without")
            return


def _fault(attempt) -> str:
    """What went wrong, in one line, or nothing."""
    try:
        attempt()
    except torch.OutOfMemoryError:
        raise  # says nothing about the platform
    except Exception as error:  # Dynamo, Inductor, Triton and the C++ compiler have a kind each
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""
