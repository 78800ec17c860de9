"""What a log point, the only place where the host learns how the steps went, may find: steps that are not finite, a
loss that jumps, a request to stop, a checkpoint that is due. And what becomes of a full disk and of too little memory.
"""

import itertools
import math
import statistics
from collections import deque
from contextlib import contextmanager

import torch

from config.recipe import StageConfig
from ffcv_ops.errors import UserError
from training import distributed, micro
from training.log import Log
from training.state import RunFolder, State
from training.step import Run
from training.step_stats import LogPoint, StepStats
from training.stop import Stopped


class Spikes:
    """Loss spikes: means of log intervals far above the last ones before them.

    Far is ten standard deviations, and at least a tenth, above their median. The deviation is a robust one of the
    differences from one interval to the next, which a loss that falls leaves small. Many runs recover: no end.
    """

    LAST, FIRST, FAR = 20, 10, 10.0  # intervals that are looked back at, at most and at least; standard deviations

    def __init__(self):
        self.losses = deque(maxlen=self.LAST)

    def usual(self, loss: float) -> float | None:
        """The median of the intervals before, if `loss` is a spike, else None; `loss` is then one of those before."""
        before = list(self.losses)
        self.losses.append(loss)
        if len(before) < self.FIRST:
            return None
        steps = [later - earlier for earlier, later in itertools.pairwise(before)]
        slope = statistics.median(steps)
        deviation = 1.4826 * statistics.median(abs(step - slope) for step in steps) / math.sqrt(2)
        median = statistics.median(before)
        return median if loss > median + max(self.FAR * deviation, 0.1 * abs(median)) else None


def heed(
    run: Run,
    state: State,
    stage: StageConfig,
    folder: RunFolder,
    log: Log,
    reading: LogPoint,
    means: StepStats,
    spikes: Spikes,
) -> None:
    """Says, saves or ends what a log point asks for. `means`: of the epoch so far, with this reading."""
    if reading.first_bad:
        _heed_bad_steps(run, state, stage, folder, log, reading, means)
    row = reading.means.row()
    usual = spikes.usual(row["loss"]) if reading.means.losses else None
    if usual is not None:
        said = f"stage {stage.name}, step {state.step}: loss {row['loss']:.4g}, usual was {usual:.4g}: a spike"
        warn(state, stage, log, said)
    if reading.stop:
        save(run, state, stage, folder, log, means, needed=True)
        log.say(f"{folder.path}: stopped at step {state.step}, as asked; the same command goes on there")
        raise Stopped(reading.stop)
    if reading.save:
        save(run, state, stage, folder, log, means)


def _heed_bad_steps(run, state, stage, folder, log, reading, means):
    number, loss, norm = reading.first_bad
    first = state.step - reading.means.steps + number
    said = f"stage {stage.name}, step {first}: loss {loss:.4g}, gradient norm {norm:.4g}"
    if run.recipe.on_nonfinite == "stop":
        held = f"the state after step {state.step}, without that one (fp16: the steps after it moved the weights)"
        if not state.scaler.is_enabled():  # the steps from that one on moved nothing
            held, nothing = "the state before it", reading.means.steps - number + 1
            state.step, state.batch = first - 1, state.batch - nothing
            means += StepStats(steps=-nothing, images=-nothing * stage.batch, bad=-reading.means.bad)
        save(run, state, stage, folder, log, means, needed=True)
        raise UserError(
            f"{said}; stopped, {folder.checkpoints} holds {held}. Go on with --on_nonfinite=skip or"
            " another --speed.precision (bf16, fp32), or start anew with a lower lr"
        )
    most = run.recipe.nonfinite_in_a_row
    if reading.bad_in_a_row > most:
        raise UserError(
            f"{said}; more than {most} steps in a row (nonfinite_in_a_row) were not finite; stopped. Go on from the"
            f" last checkpoint in {folder.checkpoints} with another --speed.precision (bf16, fp32), or start anew with"
            " a lower lr"
        )
    rest = f"left out, and {reading.means.bad - 1} of the {reading.means.steps - number} steps after it"
    warn(state, stage, log, f"{said}; {rest}")


def warn(state: State, stage: StageConfig, log: Log, said: str) -> None:
    """A warning, on the console and in the log."""
    log.warn(said, stage=stage.name, epoch=state.epoch, step=state.step)


def save(
    run: Run,
    state: State,
    stage: StageConfig,
    folder: RunFolder,
    log: Log,
    epoch_stats: StepStats,
    *,
    needed: bool = False,
) -> None:
    """The checkpoint. Where the disk does not take it, a warning; UserError in all ranks if it was `needed`."""
    fault = folder.save(state, epoch_stats, is_main=run.ranks.is_main)
    if needed:
        fault = distributed.broadcast_object(fault)
    if not fault:
        return
    said = f"stage {stage.name}, step {state.step}: no checkpoint, {folder.checkpoints} cannot be written ({fault})"
    if needed:
        raise UserError(f"{said}; make room, the same command goes on from the one before")
    warn(state, stage, log, f"{said}; the one before is kept, the next is tried as usual")


@contextmanager
def explained_memory(run: Run, stage: StageConfig, piece: int):
    """Within, to run out of a device's memory is a `UserError` that names the micro-batch and a smaller one."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = _smaller(run, stage, piece // 2) or "use a smaller model or --speed.parallel=fsdp"
        raise UserError(
            f"stage {stage.name}: {run.ranks.device} has too little memory for {piece} samples at once"
            f" (speed.micro_batch); {advice}, the same command then goes on from the last checkpoint"
        ) from error


@contextmanager
def explained_evaluation(run: Run, stage: StageConfig, batch: int, *, piece: int | None = None):
    """The same of an evaluation with `batch` images at once. `piece`: the micro-batch of the run that it belongs to, if
    it does."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = _smaller(run, stage, min(batch // 2, piece or batch)) or "use a smaller model"
        again = ", the same command then goes on from the last checkpoint" if piece else ""
        raise UserError(
            f"stage {stage.name}: {run.ranks.device} has too little memory to evaluate {batch} images at once; {advice}"
            f"{again}"
        ) from error


def _smaller(run, stage, most):
    """The option for the largest micro-batch that is possible up to `most`; "" where there is none."""
    found = (n for n in micro.choices(run.share(stage), even=stage.mixing) if n <= most)
    return next((f"try --speed.micro_batch={n}" for n in found), "")
