"""The folder of a run: everything that it must not lose.

    runs/NAME/recipe.yaml         the resolved recipe            environment.json   commit, versions, machine
              log.jsonl           a line per log point, per epoch and per stage
              checkpoints/        the last few states: weights, EMA, optimizer, position
              STAGE.safetensors   the weights that stage STAGE ended with; model.safetensors: the last stage's;
                                  STAGE_best.safetensors: those of the epoch that was best by stage.best
                                  model_ema.safetensors: their average, where the last stage has one
              report.html, curves.png, report.md (of a finished run); plan.json, predictions.npz, of which they are made
              tensorboard/

A checkpoint holds tensors and plain values only: what `Stage.state_dict` gives, and the format's number.
"""

import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from config.recipe import Recipe, load_recipe, render_recipe, result_changing_diff
from ffcv_ops.errors import UserError, writing
from ffcv_ops.files import locked, write_atomically
from training import distributed
from training.distributed import full_state_dict
from training.logging.records import write_json
from training.planning.plan import read_plan
from training.saving import checkpoint, run_identity

_FORMAT = 4
_COUNTS = ("stage", "epoch", "step_in_epoch", "step")


class RunFolder:
    """The folder of a run. Written by the first rank only; read by all."""

    def __init__(self, recipe: Recipe):
        name = Path(recipe.source).stem if recipe.log.name == "auto" else recipe.log.name
        self.path = Path(recipe.log.out) / name
        self.checkpoints = self.path / "checkpoints"
        self.keep = recipe.log.keep
        self.minutes = recipe.log.save_every
        self.pages = recipe.data.shuffle_pages
        self.saved_at = time.monotonic()

    def begun(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return bool(checkpoint.saved(self.checkpoints))

    def first_stage(self, recipe: Recipe, asked: int) -> int:
        """The number of the stage with which the run in the folder began; without a checkpoint the one `asked` for."""
        names = [stage.name for stage in recipe.stages]
        began = next(iter(self.planned()), None) if self.begun() else None
        return names.index(began) if began in names else asked

    def planned(self) -> dict[str, int]:
        """The images of each stage in the plan that is in the folder; none where there is no whole one."""
        return {plan.stage: plan.train_images for plan in read_plan(self.path / "plan.json")}

    @contextmanager
    def alone(self):
        """A context in which no other process trains in this folder; UserError where one does. Behind it the lock is
        gone, and so is the folder, where the start was refused and nothing written."""
        lock = self.path / "run.lock"
        with locked(lock, str(self.path)):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
                with suppress(OSError):
                    self.path.rmdir()

    def check_recipe(self, recipe: Recipe) -> None:
        """UserError where the folder holds a run of another recipe."""
        written = self.path / "recipe.yaml"
        if self.begun() and written.exists() and (changed := result_changing_diff(load_recipe(written), recipe)):
            raise UserError(
                f"{self.path} holds a run of another recipe ({changed}); continue that one with"
                f" --cfg {written}, or give this one a folder with --log.name"
            )

    def prepare(self, recipe: Recipe, identity: dict) -> None:
        """Makes the folder and writes what says which run it is. identity: of `run_identity.identity_of`."""
        # The folder's name stands in the recipe, so that --cfg of this file goes on here.
        named = replace(recipe, log=replace(recipe.log, name=self.path.name))
        with writing(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoint.remove_strays(self.path)
            checkpoint.remove_strays(self.checkpoints)
            text = render_recipe(named)
            write_atomically(self.path / "recipe.yaml", lambda path: path.write_text(text, encoding="utf-8"))
            write_json(self.path / run_identity.FILE, identity, indent=1)

    def check_checkpoint(self, content: dict, recipe: Recipe, identity: dict) -> None:
        """UserError where a checkpoint is of another run, or stands where this one never does."""
        step = content["step"]
        if changed := run_identity.difference(content.get("run") or {}, identity):
            raise UserError(
                f"{self.path}: the checkpoint of step {step} is one of another run ({changed}); give this run a"
                " folder with --log.name"
            )
        number, epoch = content["stage"], content["epoch"]
        if number >= len(recipe.stages) or epoch > recipe.stages[number].epochs:
            raise UserError(
                f"{self.path}: the checkpoint of step {step} stands at stage {number + 1}, epoch {epoch}, which this"
                " recipe does not have; delete it to go on from the one before"
            )

    def kept(self) -> str:
        """What a run that ends here leaves for the next start, in words."""
        saved = checkpoint.saved(self.checkpoints)
        if not saved:
            return f"{self.path} has no checkpoint yet, the same command begins anew"
        return f"{self.path} keeps the checkpoint of step {int(saved[-1].stem)}, the same command goes on from there"

    def is_checkpoint_due(self) -> bool:
        """Whether `log.save_every` minutes have passed since the last checkpoint, by this process's clock."""
        return self.minutes is not None and time.monotonic() - self.saved_at >= 60 * self.minutes

    def save(self, stage_state: dict, identity: dict, *, is_main: bool) -> str:
        """Writes a checkpoint of what `Stage.state_dict` gives, of the run `identity`. All ranks come here.

        Returns "", or why the disk did not take it (it is full, say); what was saved before is still there then.
        """
        content = {"format": _FORMAT, "run": identity, "shuffle_pages": self.pages} | stage_state
        content = full_state_dict(content, is_main=is_main)
        fault = ""
        try:
            if is_main:
                checkpoint.write(self.checkpoints, content["step"], content, keep=self.keep)
        except OSError as error:
            fault = error.strerror or str(error)
        self.saved_at = time.monotonic()
        return fault

    def load(self, *, is_main: bool = True) -> dict | None:
        """The content of the newest checkpoint that is whole, on the CPU, or None before the first. All ranks come
        here; which one it is the first rank decides, and prints what is wrong with newer ones."""
        found, fault = None, ""
        if is_main:
            try:
                found = checkpoint.newest(self.checkpoints, print)
            except UserError as error:
                fault = str(error)
        name, fault = distributed.broadcast_object((found[0].name if found else None, fault))
        if fault:
            raise UserError(fault)
        if name is None:
            return None
        path = self.checkpoints / name
        try:
            content = found[1] if found else checkpoint.read(path)
            if content.get("format") != _FORMAT:
                raise ValueError(f"format {content.get('format')} instead of {_FORMAT}")
            if not all(type(content.get(name)) is int and content[name] >= 0 for name in _COUNTS):
                raise ValueError("it does not say where the run stands")
        except ValueError as error:
            raise UserError(f"{path}: not a checkpoint of this version ({error}); delete it to do without") from error
        return content

    def check_order(self, saved: dict) -> None:
        """UserError where a checkpoint is from within an epoch whose order would now be another."""
        pages = saved.get("shuffle_pages", self.pages)
        if saved["step_in_epoch"] and pages != self.pages:
            advice = "that changes the order within the epoch under way; go on as before until the epoch's end"
            raise UserError(f"{self.path}: data.shuffle_pages {pages}, not {self.pages}: {advice}")

    def save_weights(self, name: str, model: nn.Module, *, is_main: bool) -> None:
        """`name`.safetensors, for the next stage, evaluation and export. All ranks come here, the first one writes."""
        weights = full_state_dict(model.state_dict(), is_main=is_main)
        if is_main:
            weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
            path = self.path / f"{name}.safetensors"
            try:
                write_atomically(path, lambda temporary: save_file(weights, temporary))
            except SafetensorError as error:
                raise UserError(f"{path}: cannot be written ({error}); make room, the same command goes on") from error
