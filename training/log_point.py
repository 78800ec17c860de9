"""A log point, the only place where the host learns how the steps went, and what it may find: steps that are not
finite, a loss that jumps, a request to stop, a checkpoint that is due.
"""

from ffcv_ops.errors import UserError
from training import distributed
from training.distributed.stop import Stopped
from training.run import Run
from training.stage import Stage
from training.step_stats import LogPoint, StepStats


def log_point(run: Run, stage: Stage, *, lr: float, stop) -> None:
    """Reads what the steps since the last log point were, and logs, saves or ends the run. stop: the signal that all
    ranks were asked to stop by, or None.

    Raises Stopped after a checkpoint where a stop was asked for, and UserError where the run cannot go on.
    """
    recipe, config = run.recipe, stage.config
    # The end of an epoch saves anyway. Clocks differ, so the main rank alone says when a checkpoint is due.
    save_due = run.ranks.is_main and not stage.is_epoch_end and run.folder.is_checkpoint_due()
    point = stage.meter.read(stop=stop, save=save_due)
    stage.epoch_stats += point.stats
    row = point.stats.row()
    if stage.step_in_epoch % recipe.log.every == 0:
        row["bad_samples"] = distributed.all_reduce_total(stage.train_loader.corrupt_samples.replaced, run.ranks.device)
        run.log.row(kind="step", stage=config.name, epoch=stage.epoch, step=stage.step, lr=lr, **row)
    run.log.advance(point.stats.steps, stage.epoch + 1, row)
    if point.first_bad:
        _handle_nonfinite(run, stage, point)
    usual = stage.loss_history.usual_if_spike(row["loss"]) if point.stats.losses else None
    if usual is not None:
        warn(run, stage, f"step {stage.step}: loss {row['loss']:.4g}, usual was {usual:.4g}: a spike")
    if point.stop:
        save_checkpoint(run, stage, must_succeed=True)
        run.log.say(f"{run.folder.path}: stopped at step {stage.step}, as asked; the same command goes on there")
        raise Stopped(point.stop)
    if point.save:
        save_checkpoint(run, stage)
    stage.meter.begin()  # anew, since logging and saving are no step's time


def _handle_nonfinite(run: Run, stage: Stage, point: LogPoint) -> None:
    """Ends the run, or warns. By now the device has left all bad steps out."""
    number, loss, norm = point.first_bad
    steps = point.stats.steps
    message = f"step {stage.step - steps + number}: loss {loss:.4g}, gradient norm {norm:.4g}"
    checkpoints, most = run.folder.checkpoints, run.recipe.nonfinite_in_a_row
    if run.recipe.on_nonfinite == "stop":
        what = f"the state after step {stage.step}, without that one (fp16: the steps after it moved the weights)"
        if not stage.scaler.is_enabled():
            # The steps from the bad one on moved nothing: the weights are those before it, so the counters go back
            # to it too. The loop does not see this, because the run ends here.
            undone = steps - number + 1
            stage.step, stage.step_in_epoch = stage.step - undone, stage.step_in_epoch - undone
            stage.epoch_stats += StepStats(steps=-undone, images=-undone * stage.config.batch, bad=-point.stats.bad)
            what = "the state before it"
        save_checkpoint(run, stage, must_succeed=True)
        raise UserError(
            f"stage {stage.config.name}, {message}; stopped, {checkpoints} holds {what}. Go on with"
            " --on_nonfinite=skip or another --speed.precision (bf16, fp32), or start anew with a lower lr"
        )
    if point.bad_in_a_row > most:
        raise UserError(
            f"stage {stage.config.name}, {message}; more than {most} steps in a row (nonfinite_in_a_row) were not"
            f" finite; stopped. Go on from the last checkpoint in {checkpoints} with another --speed.precision (bf16,"
            " fp32), or start anew with a lower lr"
        )
    warn(run, stage, f"{message}; left out, and {point.stats.bad - 1} of the {steps - number} steps after it")


def warn(run: Run, stage: Stage, message: str) -> None:
    """A warning, on the console and in the log."""
    name = stage.config.name
    run.log.warn(f"stage {name}, {message}", stage=name, epoch=stage.epoch, step=stage.step)


def save_checkpoint(run: Run, stage: Stage, *, must_succeed: bool = False) -> None:
    """Writes the checkpoint. Where the disk does not take it, a warning; UserError in all ranks if it must succeed."""
    fault = run.folder.save(stage.state_dict(), run.identity, is_main=run.ranks.is_main)
    if must_succeed:
        fault = distributed.broadcast_object(fault)
    if not fault:
        return
    message = f"step {stage.step}: no checkpoint, {run.folder.checkpoints} cannot be written ({fault})"
    if must_succeed:
        raise UserError(
            f"stage {stage.config.name}, {message}; free some space and run the same command again: it goes on from"
            " the one before"
        )
    warn(run, stage, f"{message}; the one before is kept, the next is tried as usual")
