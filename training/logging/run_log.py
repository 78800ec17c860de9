"""The log of a run: each row goes to log.jsonl, to the trackers, and, unless it is a log point's, to the console."""

import time
from collections.abc import Sequence
from pathlib import Path

from config.recipe import Recipe, StageConfig
from ffcv_ops.errors import writing
from training.logging.console import ConsoleProgress
from training.logging.environment import environment
from training.logging.records import RowWriter, scan_rows, write_json
from training.logging.trackers import Trackers
from training.planning.plan import StagePlan
from training.planning.reference_curves import CurveMonitor


class RunLog:
    """Writes the rows of a run into its `folder`, in the main rank; in the others it does nothing.

    `plans`: the stages of the run. `world`: the number of ranks. `saved`: the checkpoint from which the run goes on, if
    it does; rows of what came after it are dropped, for the run writes them again.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, plans: Sequence[StagePlan], *, is_main: bool, world: int, saved: dict | None
    ):
        self.is_main = is_main
        self.console = ConsoleProgress(plans, quiet=not is_main)
        if not is_main:
            return
        path = folder / "log.jsonl"
        before, left_out = scan_rows(path)
        if left_out:
            self.say(f"warning: {path}: {left_out} damaged lines are left out")
        step = saved["step"] if saved else -1
        kept = _up_to(before, step, within_epoch=bool(saved and saved["step_in_epoch"]))
        with writing(folder):
            self.writer = RowWriter(path, kept)
            write_json(folder / "environment.json", environment(world), indent=1)
            write_json(folder / "plan.json", [plan._asdict() for plan in plans])
        # `wall` goes on from the last row of all, also where the steps after the checkpoint are taken once more.
        self.began = time.monotonic() - max((row.get("wall", 0.0) for row in before), default=0.0)
        self.monitor = CurveMonitor(recipe, plans)
        for row in kept:
            self.monitor.departure(row)  # what was said before the restart is not said again
        self.trackers = Trackers(folder, recipe, step=step, say=self.say)

    def begin_stage(self, stage: StageConfig, *, done: int) -> None:
        """`done`: the stage's steps that were taken before."""
        if self.is_main:
            self.console.begin_stage(stage.name, done)

    def advance(self, steps: int, epoch: int, row: dict) -> None:
        """A log point: `steps` more of epoch number `epoch` (from 1), and what they were."""
        if self.is_main:
            self.console.advance(steps, epoch, row)

    def row(self, **values) -> None:
        """Writes one row (records.py says what is in it); `wall` and `at` are added here."""
        if not self.is_main:
            return
        values |= {"wall": time.monotonic() - self.began, "at": int(time.time())}
        values = {key: float(f"{value:.7g}") if isinstance(value, float) else value for key, value in values.items()}
        self.writer.write(values)
        self.trackers.row(values)
        if values["kind"] == "epoch":
            self.say(f"{epoch_line(values)}  {self.console.eta_text()}".rstrip())
            departure = self.monitor.departure(values)
            if departure:
                self.warn(departure, **{name: values[name] for name in ("stage", "epoch", "step")})

    def warn(self, message: str, **where) -> None:
        """A line on the console that the report will show too. `where`: stage, epoch, step."""
        self.row(kind="warning", message=message, **where)
        self.say(f"warning: {message}")

    def end_stage(self, text: str) -> None:
        """What the stage came to, beside its bar."""
        self.console.end_stage(text)

    def say(self, text: str) -> None:
        """A line on the console."""
        self.console.say(text)

    def close_bar(self) -> None:
        """Takes the bars away."""
        self.console.close()

    def close(self) -> None:
        """Ends the bars and the files."""
        self.close_bar()
        if self.is_main:
            self.trackers.close()
            self.writer.close()
            if self.writer.unwritten:
                size = len(self.writer.unwritten)
                self.say(f"{self.writer.file.name}: the disk did not take the last {size} bytes")


def _up_to(rows: list[dict], step: int, *, within_epoch: bool) -> list[dict]:
    """The rows of the first `step` steps. Where the checkpoint is from within an epoch, that epoch's row and what
    follows it are written again, even if it was the epoch's last step."""
    kept = [row for row in rows if row["step"] <= step]
    again = [k for k, row in enumerate(kept) if within_epoch and (row["kind"], row["step"]) == ("epoch", step)]
    return kept[: again[0]] if again else kept


def epoch_line(row: dict) -> str:
    """One line of the console for one epoch."""
    top1 = f"top-1 {100 * row['top1']:5.2f} %" if "top1" in row else " " * 13
    top1 += f", EMA {100 * row['ema_top1']:5.2f} %" if "ema_top1" in row else ""
    return (
        f"{row['stage']:<16} epoch {row['epoch']:>4}/{row['epochs']:<4} {row['resolution']:>3} px  "
        f"loss {row['loss']:8.4f}  {top1}  lr {row['lr']:.2e}  "
        f"{row['images_per_s']:7.0f} images/s  waited {100 * row['wait']:3.0f} % for data"
    )
