"""What a run says: JSON lines (the record), TensorBoard (a view of it) and the console (for whoever is watching).

A row is a flat dict with `kind`: step | epoch | warning, `stage`, `epoch`, `step`. Losses are in nats, times in
seconds, `wait` is the share of time that the training loop waited for data; what a warning says is in `said`.
"""

import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from training import distributed
from training.recipe import Run, Stage
from training.state import Means, RunFolder, write_atomically


def environment(world: int) -> dict:
    """Where and with what a run was made."""
    here = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    packages = ("torch", "torchvision", "timm", "ffcv", "numba", "numpy", "pillow")
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "devices": devices or [platform.processor() or platform.machine()],
        "cores": os.cpu_count(),
        "ranks": world,
    }


def read_rows(path: Path) -> list[dict]:
    """The rows of a log; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class Log:
    """Writes the rows of a run, in the first rank; in the others it does nothing."""

    def __init__(self, folder: RunFolder, run: Run, *, first: bool, world: int, step: int):
        self.first = first
        self.console = Console(quiet=not first, highlight=False)
        self.progress = None
        self.writer = None
        if not first:
            return
        kept = [row for row in read_rows(folder.log) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(folder.log, lambda path: path.write_text(text, encoding="utf-8"))
        self.lines, self.unwritten = folder.log.open("ab", buffering=0), b""
        described = json.dumps(environment(world), indent=1) + "\n"
        write_atomically(folder.path / "environment.json", lambda path: path.write_text(described, encoding="utf-8"))
        if run.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second of import, only where it is wanted

            self.writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1)

    def begin_stage(self, stage: Stage, *, steps: int, done: int) -> None:
        """A new bar; without a terminal, only the lines of `row` are printed."""
        self.close_bar()
        if self.first and self.console.is_terminal:
            columns = ("[bold]{task.description}", BarColumn(), "{task.fields[said]}")
            self.progress = Progress(
                TextColumn(columns[0]), columns[1], TextColumn(columns[2]), TimeElapsedColumn(),
                TextColumn("eta"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self.task = self.progress.add_task(stage.name, total=steps, completed=done, said="")
            self.progress.start()

    def advance(self, steps: int, said: str) -> None:
        """Moves the bar and says what is going on beside it."""
        if self.progress is not None:
            self.progress.update(self.task, advance=steps, said=said)

    def row(self, **values) -> None:
        """Writes one row: to the file, to TensorBoard, and, unless it is a `step`, to the console."""
        if not self.first:
            return
        values = {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}
        self.unwritten += json.dumps(values).encode() + b"\n"
        with suppress(OSError):  # a full disk: tried again with the next row
            self.unwritten = self.unwritten[self.lines.write(self.unwritten) :]
        self._draw(values)
        if values["kind"] == "epoch":
            self.console.print(epoch_line(values), soft_wrap=True)

    def _draw(self, values):
        """The row's numbers in TensorBoard; without it from then on where the disk is full."""
        if self.writer is None:
            return
        try:
            for key, value in values.items():
                if isinstance(value, int | float) and key not in ("step", "epoch"):
                    self.writer.add_scalar(f"{values['kind']}/{key}", value, values["step"])
        except OSError as error:
            self.say(f"TensorBoard's file cannot be written ({error.strerror}); going on without it")
            self.writer = None

    def say(self, text: str) -> None:
        """A line on the console."""
        self.console.print(text, soft_wrap=True)

    def close_bar(self) -> None:
        """Takes the bar away."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def close(self) -> None:
        """Ends the bar and the files."""
        self.close_bar()
        with suppress(OSError):
            if self.writer is not None:
                self.writer.close()
        if self.first:
            self.lines.close()
            if self.unwritten:
                self.say(f"{self.lines.name}: the disk did not take the last {len(self.unwritten)} bytes")


def epoch_line(row: dict) -> str:
    """One line of the console for one epoch."""
    top1 = f"top-1 {100 * row['top1']:5.2f} %" if "top1" in row else " " * 13
    return (
        f"{row['stage']:<16} epoch {row['epoch']:>4}/{row['epochs']:<4} {row['resolution']:>3} px  "
        f"loss {row['loss']:8.4f}  {top1}  lr {row['lr']:.2e}  "
        f"{row['images_per_s']:7.0f} images/s  waited {100 * row['wait']:3.0f} % for data"
    )


class Reading(NamedTuple):
    """What the steps between two log points were."""

    means: Means
    first_bad: tuple[int, float, float] | None  # step, loss, gradient norm
    bad_in_a_row: int  # at most, also counting those before the last log point
    stop: object  # what the run was asked to stop by, or None
    save: bool  # whether the first rank finds a checkpoint due


class Meter:
    """Sums between two log points. They stay on the device until they are read; times are the host's."""

    def __init__(self, device: torch.device):
        self.in_a_row = torch.zeros((), device=device)  # bad steps, the last ones
        self.begin()

    def begin(self) -> None:
        """Sums from here on."""
        # of loss and gradient norm, where they are finite; in float64, so that it does not matter where a run stopped
        self.sums = self.in_a_row.new_zeros(2, dtype=torch.float64)
        self.counts = self.in_a_row.new_zeros(2)
        self.bad, self.longest = self.in_a_row.new_zeros(()), self.in_a_row.new_zeros(())
        self.first_bad = self.in_a_row.new_zeros(3)  # number of the step from 1 here, loss, gradient norm
        self.steps = self.images = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor, bad: Tensor, images: int, waited: float) -> None:
        """One optimizer step: this rank's loss, the gradient norm and whether the step was bad (device scalars), all
        ranks' images, seconds."""
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited
        values = torch.stack([loss, norm])
        good = values.isfinite() & (bad == 0)
        self.sums += torch.where(good, values, 0.0)
        self.counts += good
        found = torch.cat([torch.full_like(values[:1], self.steps), values])
        self.first_bad = torch.where((bad > 0) & (self.bad == 0), found, self.first_bad)
        self.bad = self.bad + bad
        self.in_a_row = (self.in_a_row + bad) * bad
        self.longest = torch.maximum(self.longest, self.in_a_row)

    def read(self, *, stop=None, due: bool = False) -> Reading:
        """Means over steps and ranks, and a new beginning; this waits for the device and for the other ranks. `stop`
        is the same in all ranks; `due`: whether this rank, if it is the first, wants a checkpoint."""
        ends = torch.cat([(self.bad > 0)[None], self.bad.new_tensor([float(due), 1.0])])
        values = torch.cat([self.sums, self.counts, torch.stack([self.bad, self.longest]), self.first_bad, ends])
        summed = distributed.sum_over_ranks(values.double()).tolist()
        *good, bad, longest, number, bad_loss, bad_norm, hit, save, ranks = summed
        loss, norm, losses, norms = (value / ranks for value in good)
        seconds, hit = time.perf_counter() - self.began, max(hit, 1.0)  # a loss may be bad in one rank only
        means = Means(self.steps, self.images, loss, losses, norm, norms, round(bad / hit), seconds, self.waited)
        first_bad = (round(number / hit), bad_loss / hit, bad_norm / hit) if bad else None
        self.begin()
        return Reading(means, first_bad, round(longest / hit), stop, save > 0)
