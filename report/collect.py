"""A run folder -> all that its report says. What is not there yet, or is damaged, leaves gaps."""

from pathlib import Path
from typing import NamedTuple

from config.recipe import Recipe, load_recipe
from ffcv_ops.errors import UserError
from training.evaluation import predictions
from training.evaluation.predictions import Predictions
from training.logging.environment import read_environment
from training.logging.records import scan_rows
from training.planning.plan import Eta, StagePlan, eta, read_plan
from training.planning.reference_curves import Deviation, ReferenceCurve, deviation, reference_curves


class Facts(NamedTuple):
    """What is known of a run."""

    path: Path
    name: str
    recipe: Recipe
    recipe_text: str
    epochs: list[dict]  # rows of the log
    steps: list[dict]
    warnings: list[dict]
    damaged_lines: int  # of the log, and rows that are not of this recipe's stages; both are left out
    plans: list[StagePlan]  # or []
    environment: dict
    predictions: Predictions | None
    reference_curves: dict[str, ReferenceCurve]
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
    recipe = load_recipe(written)
    epochs = {stage.name: stage.epochs for stage in recipe.stages}
    all_rows, damaged = scan_rows(folder / "log.jsonl")
    rows = [row for row in all_rows if row["epoch"] <= epochs.get(row["stage"], -1)]
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("epoch", "step", "warning")}
    plans = [plan for plan in read_plan(folder / "plan.json") if len(plan.work) == epochs.get(plan.stage)]
    ended = [row for row in by_kind["epoch"][-1:] if row["epoch"] == epochs[row["stage"]] or "ended_early" in row]
    return Facts(
        path=folder,
        name=folder.resolve().name,
        recipe=recipe,
        recipe_text=written.read_text(encoding="utf-8"),
        epochs=by_kind["epoch"],
        steps=by_kind["step"],
        warnings=by_kind["warning"],
        damaged_lines=damaged + len(all_rows) - len(rows),
        plans=plans,
        environment=read_environment(folder / "environment.json"),
        predictions=predictions.load(folder / predictions.FILE),
        reference_curves=reference_curves(recipe, plans),
        finished=any(row["stage"] == recipe.stages[-1].name for row in ended),
    )


def remaining(facts: Facts) -> Eta | None:
    """How long the run will still take, by the speed of its last log points; None where that cannot be said."""
    last = facts.last
    names = [plan.stage for plan in facts.plans]
    if facts.finished or last is None or "wall" not in last or last["stage"] not in names:
        return None
    number = names.index(last["stage"])
    before = sum(plan.steps for plan in facts.plans[:number])
    if not 0 <= last["step"] - before <= facts.plans[number].steps:
        return None
    rows = sorted((row for row in (*facts.steps, *facts.epochs) if "wall" in row), key=lambda row: row["step"])
    since = [row["wall"] for row in rows if row["stage"] != last["stage"]][-1:] or [0.0]
    points = [(0, since[0]), *((row["step"] - before, row["wall"]) for row in rows if row["stage"] == last["stage"])]
    points = points[1:][-64:] if len(points) > 2 else points
    return eta(facts.plans, last["stage"], points)


def deviations(facts: Facts) -> list[tuple[ReferenceCurve, str, Deviation]]:
    """Where each stage stands beside its published curve, at its last evaluation."""
    found = []
    for stage, curve in facts.reference_curves.items():
        evaluated = [row for row in facts.epochs if row["stage"] == stage and "top1" in row]
        if evaluated:
            row = evaluated[-1]
            found.append((curve, stage, deviation(curve, row["epoch"], 100 * row["top1"])))
    return [item for item in found if item[2] is not None]


def hours(facts: Facts) -> float:
    """Hours that the run took so far, with evaluation, checkpoints and restarts where the log says so."""
    rows = [row for row in (*facts.epochs, *facts.steps) if "wall" in row]
    seconds = max((row["wall"] for row in rows), default=sum(row["seconds"] for row in facts.epochs))
    return seconds / 3600
