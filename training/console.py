"""What whoever is watching sees: on a terminal a bar for each stage and one for the run, elsewhere plain lines.

In: the plan of the run and the readings at log points. Lines that are not an epoch's come at most every LINE_EVERY
seconds, so a Slurm log of days stays readable.
"""

import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

from training import progress
from training.progress import Left, Part

LINE_EVERY = 60.0  # seconds
POINTS = 64  # log points over which the speed is taken


class Watch:
    """Where the run stands, said on the console. `quiet`: in ranks other than the first it says nothing."""

    def __init__(self, parts: Sequence[Part], *, quiet: bool):
        self.parts = parts
        self.console = Console(quiet=quiet, highlight=False)
        self.bars = None
        self.tasks = {}
        self.last_line = time.monotonic()
        self.stage, self.step = "", 0
        self.points = deque(maxlen=POINTS)

    def begin_stage(self, stage: str, done: int) -> None:
        """`done`: steps of the stage that were taken before, perhaps by an earlier process."""
        self.stage, self.step = stage, done
        self.points.clear()
        self.points.append((done, time.monotonic()))
        if self.bars is None and self.console.is_terminal:
            self.bars = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(),
                TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self.console,
            )  # fmt: skip
            for part in self.parts:
                total = part.steps * len(part.work)
                self.tasks[part.stage] = self.bars.add_task(escape(part.stage), total=total, start=False, said="")
            self.tasks[""] = self.bars.add_task("run", total=1.0, said="")
            self.bars.start()
        if self.bars is not None:
            for part in self.parts:
                if part.stage == stage:
                    break
                self._move(part.stage, part.steps * len(part.work))
            self.bars.start_task(self.tasks[stage])
            self._move(stage, done)

    def advance(self, steps: int, epoch: int, row: dict) -> None:
        """A log point: `steps` more were taken, of epoch number `epoch` (from 1)."""
        self.step += steps
        self.points.append((self.step, time.monotonic()))
        left = self.left()
        if self.bars is not None:
            self._move(self.stage, self.step, f"{self._numbers(epoch, row)}  {_time(left and left.stage)}")
            self.bars.update(self.tasks[""], completed=left.done if left else 0, said=_time(left and left.run))
        elif time.monotonic() - self.last_line >= LINE_EVERY:
            part = self._part()
            at = f"step {self.step - part.steps * (epoch - 1)}/{part.steps}"
            self.say(f"{self.stage:<16} {self._numbers(epoch, row)}  {at}  {self.remaining()}")

    def say(self, text: str) -> None:
        """A line of text as it is."""
        self.last_line = time.monotonic()
        self.console.print(escape(text), soft_wrap=True)

    def left(self) -> Left | None:
        """How long the stage and the run will take, once two log points have told the speed."""
        seconds = progress.pace(self.points)
        return progress.left(self.parts, self.stage, self.step, seconds) if seconds else None

    def remaining(self) -> str:
        """That in words."""
        left = self.left()
        if left is None:
            return ""
        return f"left: stage {progress.words(left.stage)}, run {progress.words(left.run)}"

    def end_stage(self, said: str) -> None:
        """What the stage came to, beside its bar."""
        if self.bars is not None:
            self._move(self.stage, self.step, said)

    def close(self) -> None:
        """Leaves the bars as they stand."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def _part(self):
        return next(part for part in self.parts if part.stage == self.stage)

    def _move(self, stage, completed, said=None):
        self.bars.update(self.tasks[stage], completed=completed, **({} if said is None else {"said": said}))

    def _numbers(self, epoch, row):
        return (
            f"epoch {epoch}/{len(self._part().work)}  loss {row['loss']:.4f}  {row['images_per_s']:,.0f} images/s  "
            f"waited {100 * row['wait']:.0f} %"
        )


def _time(seconds: float | None) -> str:
    return f"{progress.words(seconds)} left" if seconds is not None else ""
