"""A stage of a recipe in the words of ffcv_ops' loaders, and what they do to its samples, for people."""

import re

from config.schema import StageConfig
from ffcv_ops import order
from ffcv_ops.augment import chain
from ffcv_ops.errors import UserError

FIELDS = ("image", "label")  # of a .beton, that a run reads


def train_options(stage: StageConfig, *, world: int = 1) -> dict:
    """Keywords of `ffcv_ops.train_loader`. UserError where the batch does not divide among so many processes."""
    if stage.batch % world:
        raise UserError(f"stage {stage.name}: batch {stage.batch} does not divide among {world} processes")
    mixing = stage.mixup > 0 or stage.cutmix > 0
    if mixing and stage.batch // world % 2:
        raise UserError(f"stage {stage.name}: mixing needs an even batch per process, not {stage.batch} / {world}")
    names = ["resolution", "crop", "rrc_scale", "interpolation", "min_oversampling", "flip", "repeats", "sampling"]
    return {name: getattr(stage, name) for name in names} | {
        **_chain_options(stage),
        "augment": stage.augment,
        "batch_size": stage.batch // world,
        "crop_ratio": stage.eval_crop,
        "mix_chunk": stage.mix_chunk if mixing else None,
        "fields": FIELDS,
        "reuse_memory": True,
    }


def eval_options(stage: StageConfig) -> dict:
    """Keywords of `ffcv_ops.eval_loader`, but for the batch."""
    return {
        "resolution": stage.eval_side,
        "crop_ratio": stage.eval_crop,
        "interpolation": stage.interpolation,
        "fields": FIELDS,
        "reuse_memory": True,
    }


def smaller_batch(stage: StageConfig, num_samples: int) -> str:
    """Options for a data set that does not fill one of the stage's batches: the largest power of two with which an
    epoch has ten steps. What is trained with them is another recipe, so nothing chooses them silently."""
    length = order.epoch_length(num_samples, repeats=stage.repeats)
    batch = 1 << max(length // 10, min(2, length)).bit_length() - 1
    chunk = f" --stage.mix_chunk={batch}" if (stage.mixup or stage.cutmix) and batch % stage.mix_chunk else ""
    return f"--stage.batch={batch}{chunk}"


def chain_of(stage: StageConfig) -> str:
    """All augmentations of a stage: `augment`, then what the keys `jitter` and `erasing` add."""
    return chain.text_of(stage.augment, **_chain_options(stage))


def _chain_options(stage):
    return {"color_jitter": stage.jitter, "erasing": stage.erasing, "erasing_mode": stage.erasing_mode}


def describe(stage: StageConfig) -> str:
    """What happens to a training sample of this stage in a line: `rrc(224) | flip(.5) | three(gray+blur)`."""
    sides = f"{stage.ramp[0]} to {stage.resolution}" if stage.ramp else stage.resolution
    steps = [f"{stage.crop}({sides})"] + ([f"flip({_short(stage.flip)})"] if stage.flip else [])
    for step in chain.parse(chain_of(stage)):
        inside = ", ".join(_short(value) for _, value in step.options)
        steps.append(step.name + (f"({inside})" if inside else ""))
    return " | ".join(steps)


def _short(value):
    """0.5 -> .5"""
    return re.sub(r"^0\.", ".", str(value))
