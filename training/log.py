"""What a run says: JSON lines (the record), trackers (views of it) and the console (for whoever is watching).

A row is a flat dict with `kind`: step | epoch | warning, `stage`, `epoch`, `step`, and, added here, `wall`: seconds
that the run has taken until then, restarts included, and `at`: when it was written, seconds since 1970. Losses are in
nats, times in seconds, `wait` is the share of time that the training loop waited for data. What a warning
says is in `said`.
"""

import dataclasses
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from config.recipe import Recipe, StageConfig, render_recipe
from ffcv_ops import host
from ffcv_ops.files import write_atomically
from training import official
from training.console import Watch
from training.progress import Part
from training.run_folder import RunFolder
from training.trackers import Trackers


def environment(world: int) -> dict:
    """Where and with what a run was made."""
    here = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    packages = ("torch", "torchvision", "timm", "ffcv", "numba", "numpy", "pillow")
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "packages": host.versions(packages),
        "devices": devices or [host.processor()],
        "cores": host.usable_cores(),
        "memory": f"{host.memory()[0] / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "ranks": world,
        **({"cuda": torch.version.cuda} if devices else {}),
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


def _up_to(rows: list[dict], step: int, *, within: bool) -> list[dict]:
    """The rows of the first `step` steps. Where the checkpoint is from `within` an epoch, that epoch's row and what
    follows it are written again, even if it was the epoch's last step."""
    kept = [row for row in rows if row["step"] <= step]
    again = [k for k, row in enumerate(kept) if within and (row["kind"], row["step"]) == ("epoch", step)]
    return kept[: again[0]] if again else kept


class Log:
    """Writes the rows of a run, in the first rank; in the others it does nothing."""

    """`saved`: the checkpoint from which the run goes on; rows of what came after it are dropped."""

    def __init__(
        self, folder: RunFolder, recipe: Recipe, parts: Sequence[Part], *, is_main: bool, world: int, saved: dict | None
    ):
        self.is_main = is_main
        self.watch = Watch(parts, quiet=not is_main)
        if not is_main:
            return
        before, step = read_rows(folder.log), saved["step"] if saved else -1
        rows = _up_to(before, step, within=bool(saved and saved["batch"]))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(folder.log, lambda path: path.write_text(text, encoding="utf-8"))
        self.lines, self.unwritten = folder.log.open("ab", buffering=0), b""
        for name, content in (("environment", environment(world)), ("plan", [part._asdict() for part in parts])):
            described = json.dumps(content, indent=1 if isinstance(content, dict) else None) + "\n"
            write_atomically(folder.path / f"{name}.json", lambda path, text=described: path.write_text(text))
        self.spent = max((row.get("wall", 0.0) for row in before), default=0.0) - time.monotonic()
        self.courses, self.off_course = official.courses(recipe, parts), set()
        for row in rows:
            self._leaves_course(row)
        self.trackers = Trackers(
            folder.path, tensorboard=recipe.log.tensorboard, tracker=recipe.log.tracker, recipe=render_recipe(recipe),
            keys=dataclasses.asdict(recipe), step=step, say=self.say,
        )  # fmt: skip

    def begin_stage(self, stage: StageConfig, *, done: int) -> None:
        """`done`: the stage's steps that were taken before."""
        if self.is_main:
            self.watch.begin_stage(stage.name, done)

    def advance(self, steps: int, epoch: int, row: dict) -> None:
        """A log point: `steps` more of epoch number `epoch` (from 1), and what they were."""
        if self.is_main:
            self.watch.advance(steps, epoch, row)

    def row(self, **values) -> None:
        """Writes one row: to the file, to the trackers, and, unless it is a `step`, to the console."""
        if not self.is_main:
            return
        values |= {"wall": self.spent + time.monotonic(), "at": int(time.time())}
        values = {key: float(f"{value:.7g}") if isinstance(value, float) else value for key, value in values.items()}
        self.unwritten += json.dumps(values).encode() + b"\n"
        with suppress(OSError):  # a full disk: tried again with the next row
            self.unwritten = self.unwritten[self.lines.write(self.unwritten) :]
        self.trackers.row(values)
        if values["kind"] == "epoch":
            self.say(f"{epoch_line(values)}  {self.watch.remaining()}".rstrip())
            self.compare(values)

    def warn(self, said: str, **where) -> None:
        """A line on the console that the report will show too. `where`: stage, epoch, step."""
        self.row(kind="warning", said=said, **where)
        self.say(f"warning: {said}")

    def compare(self, row: dict) -> None:
        """Warns when an epoch's top-1 leaves the official curve of the recipe, once until it is back."""
        standing = self._leaves_course(row)
        if standing is not None:
            where = {name: row[name] for name in ("stage", "epoch", "step")}
            course = self.courses[row["stage"]].recipe
            self.warn(f"stage {row['stage']} is off the curve of {course}: {standing.words()}", **where)

    def _leaves_course(self, row: dict) -> official.Standing | None:
        course = self.courses.get(row["stage"])
        if course is None or "top1" not in row:
            return None
        standing = official.standing(course, row["epoch"], 100 * row["top1"])
        was_off = row["stage"] in self.off_course
        (self.off_course.discard if standing.on_track else self.off_course.add)(row["stage"])
        return None if standing.on_track or was_off else standing

    def end_stage(self, said: str) -> None:
        """What the stage came to, beside its bar."""
        self.watch.end_stage(said)

    def say(self, text: str) -> None:
        """A line on the console."""
        self.watch.say(text)

    def close_bar(self) -> None:
        """Takes the bars away."""
        self.watch.close()

    def close(self) -> None:
        """Ends the bars and the files."""
        self.close_bar()
        if self.is_main:
            self.trackers.close()
            self.lines.close()
            if self.unwritten:
                self.say(f"{self.lines.name}: the disk did not take the last {len(self.unwritten)} bytes")


def epoch_line(row: dict) -> str:
    """One line of the console for one epoch."""
    top1 = f"top-1 {100 * row['top1']:5.2f} %" if "top1" in row else " " * 13
    top1 += f", EMA {100 * row['ema_top1']:5.2f} %" if "ema_top1" in row else ""
    return (
        f"{row['stage']:<16} epoch {row['epoch']:>4}/{row['epochs']:<4} {row['resolution']:>3} px  "
        f"loss {row['loss']:8.4f}  {top1}  lr {row['lr']:.2e}  "
        f"{row['images_per_s']:7.0f} images/s  waited {100 * row['wait']:3.0f} % for data"
    )
