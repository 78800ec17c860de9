"""A run folder -> all that its report says. Files that are not there yet, or are from an older version, leave gaps."""

import json
from pathlib import Path
from typing import NamedTuple

from config.recipe import Recipe, load_recipe
from ffcv_ops.errors import UserError
from training import official, predictions, progress
from training.log import read_rows
from training.official import Course, Standing
from training.predictions import Predictions
from training.progress import Left, Part


class Facts(NamedTuple):
    """What is known of a run."""

    path: Path
    name: str
    run: Recipe
    recipe: str  # as text
    epochs: list[dict]  # rows of the log
    steps: list[dict]
    warnings: list[dict]
    parts: list[Part]  # the plan, or []
    environment: dict
    predictions: Predictions | None
    courses: dict[str, Course]
    finished: bool

    @property
    def last(self) -> dict | None:
        """The last row about training."""
        rows = [*self.epochs[-1:], *self.steps[-1:]]
        return max(rows, key=lambda row: row["step"], default=None)


def collect(folder: Path) -> Facts:
    """Reads a run folder; UserError where it is none."""
    folder = Path(folder)
    written = folder / "recipe.yaml"
    if not written.is_file():
        raise UserError(f"{folder}: not a run folder (no recipe.yaml); runs are in runs/, or where log.out says")
    run = load_recipe(written)
    rows = read_rows(folder / "log.jsonl")
    by_kind = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("epoch", "step", "warning")}
    parts = progress.read(_json(folder / "plan.json", []))
    last_stage = run.stages[-1]
    ended = any((row["stage"], row["epoch"]) == (last_stage.name, last_stage.epochs) for row in by_kind["epoch"][-1:])
    return Facts(
        folder, folder.resolve().name, run, written.read_text(encoding="utf-8"), by_kind["epoch"], by_kind["step"],
        by_kind["warning"], parts, _json(folder / "environment.json", {}),
        predictions.load(folder / predictions.FILE), official.courses(run, parts), ended,
    )  # fmt: skip


def _json(path: Path, otherwise):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise


def remaining(facts: Facts) -> Left | None:
    """How long the run will still take, by the speed of its last log points; None where that cannot be said."""
    last = facts.last
    if facts.finished or last is None or "wall" not in last:
        return None
    before = 0  # steps of the stages that are done
    for part in facts.parts:
        if part.stage == last["stage"]:
            break
        before += part.steps * len(part.work)
    else:
        return None
    rows = sorted((row for row in (*facts.steps, *facts.epochs) if "wall" in row), key=lambda row: row["step"])
    since = [row["wall"] for row in rows if row["stage"] != last["stage"]][-1:] or [0.0]
    points = [(0, since[0]), *((row["step"] - before, row["wall"]) for row in rows if row["stage"] == last["stage"])]
    points = points[1:][-64:] if len(points) > 2 else points
    seconds = progress.pace(points)
    return progress.left(facts.parts, last["stage"], last["step"] - before, seconds) if seconds else None


def standings(facts: Facts) -> list[tuple[Course, str, Standing]]:
    """Where each stage stands beside its official curve, at its last evaluation."""
    found = []
    for stage, course in facts.courses.items():
        evaluated = [row for row in facts.epochs if row["stage"] == stage and "top1" in row]
        if evaluated:
            row = evaluated[-1]
            found.append((course, stage, official.standing(course, row["epoch"], 100 * row["top1"])))
    return found


def hours(facts: Facts) -> float:
    """Hours that the run took so far, with evaluation, checkpoints and restarts where the log says so."""
    rows = [row for row in (*facts.epochs, *facts.steps) if "wall" in row]
    seconds = max((row["wall"] for row in rows), default=sum(row["seconds"] for row in facts.epochs))
    return seconds / 3600
