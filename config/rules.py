"""What the options of a recipe must be to each other: a function for each rule, which returns a complaint or None.

A rule is not judged where an option that it looks at was refused by itself: such an option is no attribute of the
section, and reading it raises AttributeError.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from config import schedule
from config.loading import chain_of
from config.options import to_yaml
from config.schema import Recipe
from ffcv_ops.augment import chain
from ffcv_ops.errors import UserError, one_line

REACHED = 0.9  # share of lr that a stage must come to: all published recipes come to .97


def broken_rules(recipe: Recipe) -> Iterator[str]:
    """The complaints, each with its place."""
    for rule in RULES:
        if complaint := _judged(rule, recipe):
            yield f"{one_line(recipe.source)}: {complaint}"
    found = {}  # {complaint: the stages that have it}
    for before, stage in zip((None, *recipe.stages), recipe.stages, strict=False):
        for rule in STAGE_RULES:
            if complaint := _judged(rule, stage, before, recipe):
                found.setdefault(complaint, []).append(one_line(getattr(stage, "name", "?")))
    for complaint, names in found.items():
        yield f"{one_line(recipe.source)}: stage{'s' * (len(names) > 1)} {', '.join(names)}: {complaint}"


def _judged(rule: Callable[..., str | None], *sections) -> str | None:
    try:
        return rule(*sections)
    except AttributeError:
        return None


# --- of the recipe -------------------------------------------------------------------------------------------------


def stages_have_names_of_their_own(recipe):
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        return f"each stage needs a name of its own, not {', '.join(names)}"


def names_are_names_of_files(recipe):
    auto = recipe.log.name == "auto"
    folder = Path(recipe.source).stem if auto else recipe.log.name
    for name in (folder, *(stage.name for stage in recipe.stages)):
        if not re.fullmatch(r"\w[\w.-]{0,99}", name) or ".." in name:
            advice = "use letters, digits, - and _ only, 100 at most"
            advice += ", or set log.name" if auto and name == folder else ""
            return f"the name {name!r:.60} becomes part of a path; {advice}"


def names_of_weights_are_free(recipe):
    for stage in recipe.stages:
        if stage.name in ("model", "model_ema") or stage.name.endswith("_best"):
            return f"a stage cannot be called {stage.name}: {stage.name}.safetensors is for other weights"


def finetuning_has_its_data(recipe):
    given = {recipe.data.finetune_train is not None, recipe.data.finetune_val is not None}
    if given != {any(stage.data == "finetune" for stage in recipe.stages)}:
        return (
            "data.finetune_train and data.finetune_val belong to stages with data: finetune;"
            " a recipe has both and such a stage, or neither"
        )


def checkpointing_is_eager(recipe):
    if recipe.speed.grad_checkpointing and recipe.speed.cuda_graphs:
        return "speed.grad_checkpointing does not go with speed.cuda_graphs"


def cuda_graphs_are_compiled(recipe):
    if recipe.speed.cuda_graphs and (not recipe.speed.compile or recipe.speed.parallel == "fsdp"):
        return "speed.cuda_graphs belongs to speed.compile: true or max-autotune and speed.parallel: ddp"


# --- of a stage, the stage before it or None, and the recipe -------------------------------------------------------


def augmentations_are_there(stage, before, recipe):
    try:
        chain.pin(stage.augment)
        chain.parse(chain_of(stage))
    except UserError as error:
        return f"augment: {error}"


def bce_is_not_smoothed(stage, before, recipe):
    if stage.loss == "bce" and stage.smoothing != 0 and stage.bce_threshold is not None:
        return (
            f"loss bce with smoothing {stage.smoothing:g} makes every class a target; set smoothing: 0, loss: ce or"
            " bce_threshold: none"
        )


def mixing_goes_in_pairs(stage, before, recipe):
    if stage.mixing and stage.mix_chunk % 2:
        return f"mix_chunk {stage.mix_chunk} must be even: samples are mixed in pairs"


def chunks_fill_the_batch(stage, before, recipe):
    if stage.mixing and stage.batch % stage.mix_chunk:
        return f"batch {stage.batch} must be a multiple of mix_chunk {stage.mix_chunk}"


def micro_batches_fill_the_batch(stage, before, recipe):
    size = recipe.speed.micro_batch
    if size != "auto" and stage.batch % size:
        return f"batch {stage.batch} must be a multiple of speed.micro_batch {size}"


def micro_batches_hold_pairs(stage, before, recipe):
    size = recipe.speed.micro_batch
    if size != "auto" and stage.mixing and size % 2:
        return f"speed.micro_batch {size} must be even: samples are mixed in pairs"


def ramp_begins_below_the_resolution(stage, before, recipe):
    if stage.ramp is not None and not 8 <= stage.ramp[0] <= stage.resolution:
        return f"ramp begins at {stage.ramp[0]} px; it must be 8 to resolution {stage.resolution}"


def ramp_ends_within_the_stage(stage, before, recipe):
    if stage.ramp is not None and not stage.ramp[1] <= stage.ramp[2] < stage.epochs:
        return f"ramp {to_yaml(stage.ramp)} must end within {stage.epochs} epochs"


def rrc_scale_rises(stage, before, recipe):
    low, high = stage.rrc_scale
    if low > high:
        return f"rrc_scale {to_yaml(stage.rrc_scale)} must be [smallest, largest]"


def warmup_ends_within_the_stage(stage, before, recipe):
    if stage.warmup_epochs > stage.epochs:
        return f"warmup_epochs {stage.warmup_epochs} is more than epochs {stage.epochs}; set warmup_epochs too"


def lr_falls(stage, before, recipe):
    if stage.min_lr > stage.lr:
        return f"min_lr {stage.min_lr:g} is above lr {stage.lr:g}"


def warmup_rises(stage, before, recipe):
    if stage.warmup_epochs and stage.warmup_lr > stage.lr:
        return f"warmup_lr {stage.warmup_lr:g} is above lr {stage.lr:g}"


def lr_is_reached(stage, before, recipe):
    if stage.schedule != "epoch" or stage.warmup_epochs > stage.epochs:
        return None
    epochs = range(min(stage.epochs, stage.warmup_epochs + 2))
    highest = max(schedule.learning_rate(stage, epoch, 1) for epoch in epochs)
    if highest < REACHED * stage.lr:
        return (
            f"schedule: epoch comes an epoch late, so that {stage.epochs} epochs, of them {stage.warmup_epochs} of"
            f" warm-up, reach {highest:.3g} at most, not lr {stage.lr:g}; set schedule: step, or more epochs, or fewer"
            " warmup_epochs"
        )


def class_weights_are_of_cross_entropy(stage, before, recipe):
    if stage.class_weights != "none" and stage.loss != "ce":
        return f"class_weights: {stage.class_weights} belongs to loss: ce, not to {stage.loss}"


def balanced_sampling_reads_the_whole_file(stage, before, recipe):
    if stage.sampling != "uniform" and recipe.data.shuffle_pages is not None:
        return "sampling: balanced goes through the whole file; it cannot go with data.shuffle_pages"


def distilling_has_a_teacher(stage, before, recipe):
    if (stage.distill == "none") != (stage.teacher is None):
        return "distill and teacher belong together: set both or neither"


def foreign_optimizers_are_not_sharded(stage, before, recipe):
    if stage.optimizer not in ("lamb", "adamw", "sgd") and recipe.speed.parallel == "fsdp":
        return f"optimizer {stage.optimizer} is not for speed.parallel: fsdp; lamb, adamw and sgd are"


def best_can_be_told(stage, before, recipe):
    if stage.best == "ema_top1" and stage.ema is None:
        return "best: ema_top1 needs averaged weights; give the stage an ema"
    if stage.patience is not None and stage.best == "none":
        return "patience needs to know what is better; set best"


def averaged_weights_are_there(stage, before, recipe):
    if stage.start == "ema" and before is None:
        return "start: ema has no stage before it to take averaged weights from; set start: last"
    if stage.start == "ema" and before.ema is None:
        return f"start: ema needs the averaged weights of stage {before.name}; give it an ema"


RULES = (
    stages_have_names_of_their_own,
    names_are_names_of_files,
    names_of_weights_are_free,
    finetuning_has_its_data,
    cuda_graphs_are_compiled,
    checkpointing_is_eager,
)
STAGE_RULES = (
    augmentations_are_there,
    bce_is_not_smoothed,
    mixing_goes_in_pairs,
    chunks_fill_the_batch,
    micro_batches_fill_the_batch,
    micro_batches_hold_pairs,
    ramp_begins_below_the_resolution,
    ramp_ends_within_the_stage,
    rrc_scale_rises,
    warmup_ends_within_the_stage,
    lr_falls,
    warmup_rises,
    lr_is_reached,
    class_weights_are_of_cross_entropy,
    balanced_sampling_reads_the_whole_file,
    distilling_has_a_teacher,
    foreign_optimizers_are_not_sharded,
    best_can_be_told,
    averaged_weights_are_there,
)
