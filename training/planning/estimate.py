"""What a run will be, before it is one: its plan (steps and work), and the table of `--print` (size, memory, hours).

In: a recipe, its data sets (checked or assumed) and, if known, training images per second and GPU. For the recipes'
networks and without their files it needs no torch, so that --print answers at once.
"""

from collections.abc import Sequence

from config import loading, schedule
from config.recipe import render_recipe
from config.schema import Recipe, StageConfig
from ffcv_ops import host, order
from ffcv_ops.augment import load
from ffcv_ops.errors import UserError
from ffcv_ops.storage.info import exists
from training.datasets import DataSet, planned_sets
from training.planning import roofline
from training.planning.model_costs import ModelCosts, model_costs
from training.planning.plan import StagePlan

COLUMNS = (
    "stage", "px", "tokens", "M param.", "GMACs", "steps", "samples", "lr start", "lr peak", "lr end", "at once", "GiB",
    "GPU-hours",
)  # fmt: skip
ON = ("images/s", "ms/step", "euros")  # columns for a named GPU
LAMB_UPDATE = 2**28  # bytes at most, on a GPU


def training_plan(recipe: Recipe, sets: dict[str, DataSet], first: int) -> list[StagePlan]:
    """Of the stages from number `first` on."""
    plans = []
    for stage in recipe.stages[first:]:
        data = sets[stage.data]
        steps = stage_length(stage, sets)[0] // stage.epochs
        sides = (schedule.resolution(stage, epoch) for epoch in range(stage.epochs))
        work = tuple(round(steps * stage.batch * _costs(recipe, stage, sets, side).gmacs, 6) for side in sides)
        plans.append(StagePlan(stage.name, steps, work, data.train.samples, data.val.samples, data.classes))
    return plans


def _costs(recipe, stage, sets, side=None):
    side = side or stage.resolution
    return model_costs(recipe.model, side, sets[stage.data].classes, drop_path=stage.drop_path)


def work_share(recipe: Recipe, stage: StageConfig, sets: dict[str, DataSet]) -> float:
    """Multiply-adds of the stage as a share of what they would be at its last resolution throughout."""
    sides = schedule.resolutions(stage).items()
    work = sum(epochs * _costs(recipe, stage, sets, side).macs for side, epochs in sides)
    return work / stage.epochs / _costs(recipe, stage, sets).macs


def print_plan(recipe: Recipe, *, images_per_s: Sequence[float] = (), on: str | None = None) -> None:
    """The resolved recipe and, as comments, so that the whole is a recipe, what each stage is and costs."""
    table = describe(recipe, planned_sets(recipe), images_per_s=images_per_s, on=on)
    print(render_recipe(recipe) + table, end="")


def describe(
    recipe: Recipe, sets: dict[str, DataSet], *, images_per_s: Sequence[float] = (), on: str | None = None
) -> str:
    """A table of the stages as YAML comments, to follow the recipe. `images_per_s`: of one GPU at a stage's last
    resolution, for each stage or for the first alone, from which the others' follow by their multiply-adds. on: the
    device for which speeds that are not given are estimated (roofline.py)."""
    costs = [_costs(recipe, stage, sets) for stage in recipe.stages]
    at_once = [stage.mix_chunk if (size := recipe.speed.micro_batch) == "auto" else size for stage in recipe.stages]
    estimated = [
        roofline.images_per_s(on, recipe, *one) if on else None
        for one in zip(recipe.stages, costs, at_once, strict=True)
    ]
    speeds = list(images_per_s) or estimated
    speeds += [speeds[0] * costs[0].gmacs / own.gmacs for own in costs[len(speeds) :]]
    rows = [COLUMNS + ON * bool(on)]
    for stage, cost, speed, size in zip(recipe.stages, costs, speeds, at_once, strict=True):
        steps, rates = stage_length(stage, sets)
        samples, parameters = steps * stage.batch, f"{cost.parameters / 1e6:.3f}"
        memory = f"{peak_memory(recipe, stage, cost, size) / 2**30:.1f}"
        hours = samples / speed / 3600 * work_share(recipe, stage, sets) if speed else None
        price = [f"{hours * roofline.euros(on):,.0f}"] if on else []
        rows.append(
            (stage.name, stage.resolution, cost.tokens or "-", parameters, f"{cost.gmacs:.2f}", steps,
             f"{samples:,}", *(f"{rate:.2e}" for rate in rates), size, memory, f"{hours:.1f}" if hours else "-",
             *([f"{speed:,.4g}", f"{1000 * stage.batch / speed:,.4g}", *price] if on else ()))
        )  # fmt: skip
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    notes = [*_notes(recipe, sets, images_per_s), *_notes_on(recipe, on, estimated, images_per_s)]
    return "".join(f"# {line}".rstrip() + "\n" for line in (*lines, "", *notes))


def _notes_on(recipe, on, estimated, measured):
    if on is None:
        return
    yield (
        f"images/s, ms/step (one device taking a whole batch): of {on}, estimated (see training/planning/roofline.py)"
        + (f"; {roofline.euros(on):g} euros per hour." if roofline.euros(on) else ".")
    )
    for stage, one, other in zip(recipe.stages, estimated, measured, strict=False):
        ratio = f"{other / one:.2f} times as many"
        yield f"{stage.name}: estimated {one:,.4g} images/s, given or measured {other:,.4g}, {ratio}."
    for stage, speed in zip(recipe.stages, estimated, strict=True):
        cores = roofline.loading_cores(stage, speed) if on != "cpu" else None
        if cores:
            here = host.usable_cores()
            few = f"; this machine has {here}, and would wait for data" if here < cores else ""
            yield f"{stage.name}: {speed:,.4g} images/s take about {cores} cores to load for each GPU{few}."


def _notes(recipe, sets, images_per_s):
    for stage in recipe.stages:
        load.from_text(loading.chain_of(stage))  # a mistake in a file of the user's own is found before a run is
        yield f"{stage.name}: {loading.describe(stage)}"
    yield "GiB: estimated peak memory of a device that takes `at once` samples (see training/planning/estimate.py)."
    if images_per_s:
        speeds = ", ".join(f"{speed:.4g}" for speed in images_per_s)
        yield f"GPU-hours: at {speeds} training images/s and GPU, without evaluation and loading."
    for data in sets.values():
        if not exists(data.train.path):
            yield (f"{data.train.path} is not here: taken to hold {data.train.samples:,} images in"
                   f" {data.classes:,} classes.")  # fmt: skip


def stage_length(stage: StageConfig, sets: dict[str, DataSet]) -> tuple[int, tuple[float, float, float]]:
    """Steps of a stage; its learning rate at the start, at its highest and in the last step."""
    samples = sets[stage.data].train.samples
    per_epoch = order.epoch_length(samples, repeats=stage.repeats) // stage.batch
    if per_epoch == 0:
        raise UserError(
            f"stage {stage.name}: {samples} images do not fill one batch of {stage.batch}; try"
            f" {loading.smaller_batch(stage, samples)} and a lower --stage.lr"
        )
    steps = per_epoch * stage.epochs
    rates = [schedule.learning_rate(stage, step, per_epoch) for step in (*range(0, steps, per_epoch), steps - 1)]
    return steps, (rates[0], max(rates), rates[-1])


def peak_memory(recipe: Recipe, stage: StageConfig, costs: ModelCosts, samples: int) -> int:
    """Bytes that a device needs at most when it takes `samples` at once; estimated, not measured.

    These are float32 weights, gradients, the optimizer's moments and the EMA; then the larger of LAMB's update (256 MiB
    at most) and what the forward pass keeps for the backward pass. The latter is what autograd saves of this model,
    counted on shapes. Left out are the images, the kernels' own buffers, and the allocator's waste.
    """
    on_cpu = recipe.speed.device == "cpu" and recipe.speed.precision == "auto"
    once, each = costs.saved_fp32 if on_cpu or recipe.speed.precision == "fp32" else costs.saved_bf16
    weights = 4 * costs.parameters
    update = min(weights, LAMB_UPDATE) if stage.optimizer == "lamb" else 0
    kept = weights * (2 + moments(stage.optimizer) + (stage.ema is not None))
    return kept + max(once + samples * each, update)


def moments(optimizer: str) -> int:
    """Tensors of each weight's size that an optimizer keeps; of others than ours it is a guess."""
    return 1 if optimizer == "sgd" else 2
