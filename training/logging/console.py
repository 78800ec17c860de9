"""What whoever is watching sees: on a terminal a bar for each stage and one for the run, elsewhere plain lines.

In: the plan of the run and the rows of log points. Lines that are not an epoch's come at most every LINE_EVERY seconds,
so a Slurm log of days stays readable.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

from config.text import format_duration
from training.planning.plan import Eta, StagePlan, eta

LINE_EVERY = 60.0  # seconds
POINTS = 64  # log points over which the speed is taken


class _Console(Console):
    """One whose reader may go away (`| head`): the run goes on without it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        with suppress(OSError):  # that of stderr may be gone too
            print("nobody reads the output any more; the run goes on, and log.jsonl has it all", file=sys.stderr)


class ConsoleProgress:
    """Where the run stands, on the console. `quiet`: in ranks other than the main one it prints nothing."""

    def __init__(self, plans: Sequence[StagePlan], *, quiet: bool):
        self.plans = plans
        self.console = _Console(quiet=quiet, highlight=False)
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
            self._draw_bars()
        if self.bars is not None:
            for plan in self.plans:  # stages that an earlier process finished
                if plan.stage == stage:
                    break
                self._move(plan.stage, plan.steps)
            self.bars.start_task(self.tasks[stage])
            self._move(stage, done)

    def _draw_bars(self):
        self.bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self.console,
        )
        for plan in self.plans:
            self.tasks[plan.stage] = self.bars.add_task(escape(plan.stage), total=plan.steps, start=False, note="")
        self.tasks[""] = self.bars.add_task("run", total=1.0, note="")
        self.bars.start()

    def advance(self, steps: int, epoch: int, row: dict) -> None:
        """A log point: `steps` more were taken, of epoch number `epoch` (from 1)."""
        self.step += steps
        self.points.append((self.step, time.monotonic()))
        left = self.eta()
        if self.bars is not None:
            self._move(self.stage, self.step, f"{self._numbers(epoch, row)}  {_time(left and left.stage)}")
            self.bars.update(self.tasks[""], completed=left.done if left else 0, note=_time(left and left.run))
        elif time.monotonic() - self.last_line >= LINE_EVERY:
            steps = self._plan().steps_per_epoch
            at = f"step {self.step - steps * (epoch - 1)}/{steps}"
            self.say(f"{self.stage:<16} {self._numbers(epoch, row)}  {at}  {self.eta_text()}")

    def say(self, text: str) -> None:
        """A line of text as it is."""
        self.last_line = time.monotonic()
        self.console.print(escape(text), soft_wrap=True)

    def eta(self) -> Eta | None:
        """How long the stage and the run will take, once two log points have told the speed."""
        return eta(self.plans, self.stage, self.points)

    def eta_text(self) -> str:
        """That in words."""
        left = self.eta()
        return f"left: stage {format_duration(left.stage)}, run {format_duration(left.run)}" if left else ""

    def end_stage(self, note: str) -> None:
        """What the stage came to, beside its bar."""
        if self.bars is not None:
            self._move(self.stage, self.step, note)

    def close(self) -> None:
        """Leaves the bars as they stand."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def _plan(self):
        return next(plan for plan in self.plans if plan.stage == self.stage)

    def _move(self, stage, completed, note=None):
        self.bars.update(self.tasks[stage], completed=completed, **({} if note is None else {"note": note}))

    def _numbers(self, epoch, row):
        return (
            f"epoch {epoch}/{len(self._plan().work)}  loss {row['loss']:.4f}  {row['images_per_s']:,.0f} images/s  "
            f"waited {100 * row['wait']:.0f} %"
        )


def _time(seconds: float | None) -> str:
    return f"{format_duration(seconds)} left" if seconds is not None else ""
