"""Everything that a run must not lose, and the folder in which it is kept.

    runs/NAME/recipe.yaml         the resolved recipe            environment.json   commit, versions, machine
              log.jsonl           a line per log point, per epoch and per stage
              last.pt             where the run stands: weights, averages, optimizer, position
              STAGE.safetensors   the weights that stage STAGE ended with; model.safetensors: the last stage's;
                                  model_ema.safetensors: their average, where the last stage has one
              report.md, curves.png, tensorboard/

A checkpoint holds tensors and plain values only, and is read with `weights_only=True`. Random numbers are no part of
it: all of them follow from (seed, step), so the position is enough to go on bit for bit.
"""

import dataclasses
import math
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ffcv_ops.errors import BadInput
from training import recipe
from training.distributed import whole
from training.recipe import Run

_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Means:
    """Sums over steps, to be read as means: of loss (nats) and gradient norm with the number of finite ones of each, of
    seconds, and of those waited for data; and how many steps were bad, that is, not finite."""

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    losses: int = 0
    norm: float = 0.0
    norms: int = 0
    bad: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: "Means") -> "Means":
        return Means(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def row(self) -> dict:
        """What a row of the log says; a mean of nothing is not a number."""
        seconds = max(self.seconds, 1e-9)
        return {
            "loss": self.loss / self.losses if self.losses else math.nan,
            "grad_norm": self.norm / self.norms if self.norms else math.nan,
            "images_per_s": self.images / seconds,
            "wait": self.waited / seconds,
            "seconds": self.seconds,
            "bad_steps": self.bad,
        }


@dataclasses.dataclass
class State:
    """One stage in training, and where it stands. `epoch`, `batch` (of the epoch that follows) and `step` count what is
    done; `step` over all stages."""

    stage: int
    epoch: int
    step: int
    model: nn.Module
    average: nn.Module | None  # a model with the exponential moving average of the weights
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    batch: int = 0
    halted: torch.Tensor | None = None  # 1.0 on the device once a step was not finite and no more are to follow


def write_atomically(path: Path, write) -> None:
    """Calls write(temporary path) and renames the result to `path` once it is safely on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RunFolder:
    """The folder of a run. Written by the first rank only; read by all."""

    def __init__(self, run: Run):
        name = Path(run.source).stem if run.log.name == "auto" else run.log.name
        self.path = Path(run.log.out) / name
        self.checkpoint = self.path / "last.pt"
        self.log = self.path / "log.jsonl"

    def prepare(self, run: Run) -> None:
        """Makes the folder, or checks that the run that is in it already is this one."""
        written = self.path / "recipe.yaml"
        if self.checkpoint.exists() and written.exists():
            changed = science(recipe.load(written), run)
            if changed:
                raise BadInput(
                    f"{self.path} holds a run of another recipe ({changed}); continue that one with"
                    f" --cfg {written}, or give this one a folder with --log.name"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        for stray in self.path.glob("*.tmp"):
            stray.unlink()
        write_atomically(written, lambda path: path.write_text(recipe.render(run), encoding="utf-8"))

    def save(self, state: State, so_far: Means, *, first: bool) -> None:
        """The checkpoint, atomically: a kill at any moment leaves this one or the one before. `so_far`: of the epoch
        that is under way. All ranks come here, the first one writes."""
        content = {
            "format": _FORMAT,
            **{name: getattr(state, name) for name in ("stage", "epoch", "batch", "step")},
            "so_far": dataclasses.asdict(so_far),
            "model": state.model.state_dict(),
            "average": state.average.state_dict() if state.average is not None else None,
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
        }
        content = whole(content, first=first)
        if first:
            write_atomically(self.checkpoint, lambda path: torch.save(content, path))

    def load(self) -> dict | None:
        """The content of the checkpoint on the CPU, or None before the first."""
        if not self.checkpoint.exists():
            return None
        try:
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']} instead of {_FORMAT}")
        except Exception as error:  # torch.load raises many kinds; each means that the file cannot be used
            reason = str(error).partition("\n")[0]
            advice = "delete it to start again"
            raise BadInput(f"{self.checkpoint}: not a checkpoint of ours ({reason}); {advice}") from error
        return content

    def save_weights(self, name: str, model: nn.Module, *, first: bool) -> None:
        """`name`.safetensors, for the next stage, evaluation and export. All ranks come here, the first one writes."""
        weights = whole(model.state_dict(), first=first)
        if first:
            weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
            write_atomically(self.path / f"{name}.safetensors", lambda path: save_file(weights, path))


def restore(state: State, content: dict) -> Means:
    """Puts a checkpoint's content into a freshly begun stage. Returns the means of the epoch that is under way."""
    state.epoch, state.batch, state.step = content["epoch"], content["batch"], content["step"]
    state.model.load_state_dict(content["model"])
    if state.average is not None:
        state.average.load_state_dict(content["average"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scaler.load_state_dict(content["scaler"])
    return Means(**content["so_far"])


def science(before: Run, after: Run) -> str:
    """What differs between two runs among the keys that change results, in words; "" if nothing does."""
    if before.seed != after.seed:
        return f"seed {before.seed}, not {after.seed}"
    if before.speed.drop_path != after.speed.drop_path:
        return f"speed.drop_path {before.speed.drop_path}, not {after.speed.drop_path}"
    if before.model != after.model:
        return f"model {before.model}, not {after.model}"
    if [stage.name for stage in before.stages] != [stage.name for stage in after.stages]:
        return f"stages {', '.join(s.name for s in before.stages)}, not {', '.join(s.name for s in after.stages)}"
    for old, new in zip(before.stages, after.stages, strict=True):
        for field in dataclasses.fields(old):
            one, other = getattr(old, field.name), getattr(new, field.name)
            if one != other:
                return f"stage {old.name}: {field.name} {one}, not {other}"
    return ""
