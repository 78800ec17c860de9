"""Where a run's numbers can be watched besides its own log: TensorBoard and Weights & Biases.

In: rows of the log. Out: calls to a library that is imported only when the recipe names it (`log.tensorboard`,
`log.tracker`). A tracker that fails is given up with one line; the run goes on. What is handed over is the recipe and
the numbers: no environment, no command line, no code.
"""

import dataclasses
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from config.recipe import Recipe, render_recipe
from training.logging.records import read_json, write_json

PROJECT = "deit3-ffcv"  # unless WANDB_PROJECT names another

NAMES = {  # keys of a row -> what a tracker calls them; those before the slash are its groups
    "loss": "loss/train",
    "val_loss": "loss/val",
    "top1": "accuracy/top1",
    "top5": "accuracy/top5",
    "balanced": "accuracy/balanced",
    "ema_top1": "accuracy/ema_top1",
    "ema_top5": "accuracy/ema_top5",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "bad_steps": "optimizer/bad_steps",
    "resolution": "data/resolution",
    "bad_samples": "data/bad_samples",
    "images_per_s": "speed/images_per_s",
    "wait": "speed/data_wait",
}


def scalars(row: dict) -> dict[str, float]:
    """What a tracker is told of a row. Means over an epoch have names of their own, beside those of log points."""
    named = {NAMES[key]: value for key, value in row.items() if key in NAMES}
    if row["kind"] == "epoch":
        own = ("accuracy/", "data/", "loss/val")
        named = {name if name.startswith(own) else f"{name}_of_epoch": value for name, value in named.items()}
        named["data/epoch"] = row["epoch"]
    return named


class Trackers:
    """All that the recipe asks for. `step`: what the run has done before, -1 for nothing. `say` prints a line."""

    def __init__(self, folder: Path, recipe: Recipe, *, step: int, say: Callable[[str], object]):
        self.say = say
        self.open = []
        if recipe.log.tensorboard:
            self._try("TensorBoard", lambda: self.open.append(_tensorboard(folder, recipe, step)))
        if recipe.log.tracker == "wandb":
            self._try("wandb", lambda: self.open.append(_wandb(folder, recipe)))

    def row(self, row: dict) -> None:
        """Hands a row on."""
        values = scalars(row)
        for tracker in tuple(self.open) if values else ():
            name, send, _ = tracker
            if not self._try(name, lambda send=send: send(values, row["step"])):
                self.open.remove(tracker)

    def close(self) -> None:
        """Lets each write what it still holds."""
        for name, _, end in self.open:
            self._try(name, end)
        self.open = []

    def _try(self, name: str, act: Callable[[], object]) -> bool:
        try:
            act()
        except Exception as error:  # a library of others', perhaps over a network; none of its faults may end a run
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self.say(f"warning: {name} is left out from here on: {reason}")
            return False
        return True


def _tensorboard(folder, recipe, step):
    from torch.utils.tensorboard import SummaryWriter  # a second of import

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
    text = render_recipe(recipe).replace("\n", "\n    ")  # Markdown: what is indented is shown as it is
    writer.add_text("recipe", f"    {text}", 0)

    def send(values, at):
        for name, value in values.items():
            writer.add_scalar(name, value, at)

    return "TensorBoard", send, writer.close


def _wandb(folder, recipe):
    import wandb

    settings = wandb.Settings(
        disable_git=True, save_code=False, console="off", x_disable_meta=True, x_disable_stats=True, silent=True
    )
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=folder.name,
        id=_identity(folder),
        resume="allow",
        dir=str(folder),
        config=dataclasses.asdict(recipe),
        settings=settings,
    )
    return "wandb", lambda values, at: run.log(values, step=at), run.finish


def _identity(folder: Path) -> str:
    """The run's name at a tracker, kept in its folder, so that it goes on there after an interruption."""
    path = folder / "tracker.json"
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("id"), str):
        return content["id"]
    identity = uuid.uuid4().hex[:12]
    write_json(path, {"id": identity})
    return identity
