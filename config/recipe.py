"""YAML + command line -> one frozen `Run`.

In: a recipe's path and the command line's overrides, {"stage.epochs": "1"}. Out: `Run`, in which every key has a value
of its declared type, or `UserError`.

recipes/base.yaml holds every key. A recipe names it (`base: base.yaml`, relative to the recipe, one level deep) and
holds what differs. `stages:` is a list of rows, each a delta on `stage:`; without it the run has one stage. The later
wins: base < the recipe's `stage:` < stage row < command line, whose `--stage.*` therefore applies to every stage.
A recipe without `base:` must be complete by itself, as the resolved recipe of a run folder is.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from config import keys
from config.keys import key
from ffcv_ops.errors import UserError

BASE_RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "base.yaml"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """data: the files a run reads, and how"""

    train: str = key(".beton to train on; a pattern with a * names the shards of one data set")
    val: str = key(".beton to evaluate on")
    finetune_train: str | None = key(".beton to train on, of stages with data: finetune")
    finetune_val: str | None = key(".beton to evaluate on, of stages with data: finetune")
    workers: int | Literal["auto"] = key(
        "threads of the loader, per rank; auto: this rank's cores", low=1, changes="speed"
    )
    cache: Literal["os", "process"] = key(
        "os: the system's page cache holds the file; process: read page by page", changes="speed"
    )
    shuffle_pages: int | None = key("pages of the file that are shuffled together; none: all", low=1)
    on_bad_sample: Literal["stop", "replace"] = key("a stored image that does not decode: stop, or show another one")
    bad_limit: float = key("replace: share of an epoch's samples above which the run stops", low=0, high=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """model: what is trained; the image size is the stage's"""

    name: str = key("timm's name of the architecture")
    layer_scale: float | None = key("LayerScale's initial value; none: without it", above=0)
    classes: int | Literal["auto"] = key("size of the head; auto: the classes of the .beton", low=1)
    blur_pool: bool = key("blur before each strided convolution of 16 channels or more")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """stage: what changes the result, one row of stages: each"""

    name: str = key("name in logs and files")
    data: Literal["main", "finetune"] = key("data.train and data.val, or data.finetune_train and data.finetune_val")
    resolution: int = key("side of the square training image, pixels", low=8, high=4096)
    ramp: tuple[int, int, int] | None = key("pixels at first; epochs between which they rise to resolution", low=0)
    epochs: int = key("passes of as many samples as there are images", low=1)
    batch: int = key("samples per optimizer step, over all devices", low=1)
    crop: Literal["rrc", "src", "centre"] = key("random resized crop, simple random crop, or the evaluation crop")
    rrc_scale: tuple[float, float] = key("rrc: smallest and largest share of the image's area", above=0, high=1)
    interpolation: Literal["bicubic", "bilinear"] = key("of the resizing, antialiased, in training and evaluation")
    least_downscale: float | None = key(
        "decode less (a smaller level, a scaled DCT, luma alone) where so many pixels per output pixel remain", above=0
    )
    flip: float = key("probability of a horizontal flip", low=0, high=1)
    augment: Literal["three", "rand", "auto-original", "auto-v0", "trivial", "none"] = key(
        "3-Augment, RandAugment, AutoAugment, TrivialAugment or none"
    )
    three_ops: tuple[Literal["gray", "solarize", "blur"], ...] = key("three: one of these for each sample")
    rand_config: str = key("rand: strength, in timm's notation")
    jitter: float | None = key("colour jitter: brightness, contrast and saturation in 1 -+ this", above=0, high=1)
    erasing: float = key("probability of random erasing", low=0, high=1)
    erasing_mode: Literal["const", "rand", "pixel"] = key("erase with the mean colour, one random colour, or noise")
    repeats: int = key("views of an image in an epoch (repeated augmentation)", low=1)
    mixup: float = key("alpha of mixup; 0: no mixup", low=0)
    cutmix: float = key("alpha of CutMix; 0: no CutMix", low=0)
    mix_chunk: int = key("samples that share one mixing draw", low=2)
    smoothing: float = key("label smoothing", low=0, below=1)
    loss: Literal["bce", "ce"] = key("binary cross-entropy on targets > 0, or cross-entropy with soft targets")
    drop_path: float = key("stochastic depth, the same rate in every block", low=0, below=1)
    optimizer: Literal["lamb", "adamw", "sgd"] = key("optimizer")
    lr: float = key("peak learning rate, for the whole batch, never rescaled", above=0)
    min_lr: float = key("learning rate at the cosine's end", low=0)
    warmup_epochs: int = key("epochs of linear warm-up, part of the cosine's epochs", low=0)
    warmup_lr: float = key("learning rate at the warm-up's start", low=0)
    schedule: Literal["epoch", "step", "linear"] = key(
        "how the learning rate falls: cosine, moving once an epoch or each step; or a straight line, each step"
    )
    weight_decay: float = key("on weight matrices only", low=0)
    betas: tuple[float, float] = key("lamb, adamw: decay of the two moments", low=0, below=1)
    eps: float = key("lamb, adamw: added to the denominator", above=0)
    momentum: float = key("sgd: momentum", low=0, below=1)
    clip_norm: float | None = key("largest global norm of the gradient", above=0)
    ema: float | None = key("decay per step of the averaged weights", above=0, below=1)
    start: Literal["last", "ema"] = key("which weights of the stage before to start from")
    head: Literal["keep", "new", "map"] = key("the classifier: kept, begun anew, or rows of the same class names kept")
    eval_resolution: int | None = key("evaluation: side of the image, pixels; none: resolution", low=8, high=4096)
    eval_crop: float = key("evaluation: share of the short side inside the centre crop", above=0, high=1)
    eval_flip: bool = key("evaluation: mean of the logits of each image and its mirror image")

    @property
    def mixing(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def eval_side(self) -> int:
        return self.eval_resolution or self.resolution


@dataclasses.dataclass(frozen=True)
class SpeedConfig:
    """speed: how fast; the result changes by rounding only, except for drop_path: subset"""

    changes: ClassVar[str] = "speed"

    device: Literal["auto", "cpu", "cuda"] = key("auto: cuda where there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key("of the forward pass; auto: bf16 or fp16 on a GPU")
    compile: bool = key("torch.compile the mixing and the model's blocks")
    cuda_graphs: bool = key("compile: the whole model, with its kernels replayed as CUDA graphs")
    drop_path: Literal["exact", "subset"] = key("stochastic depth: a mask, or compute the kept samples only")
    parallel: Literal["ddp", "fsdp"] = key("several devices: the model on each, or sharded over them (FSDP2)")
    micro_batch: int | Literal["auto"] = key("samples per forward pass and device; auto: as many as fit", low=1)
    channels_last: bool = key("memory format of the images, and of a convolutional model's weights")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """log: what is written, and where"""

    changes: ClassVar[str] = "records"

    out: str = key("folder of the run folders")
    name: str = key("this run's folder in it; auto: the recipe's name")
    every: int = key("steps between two lines of the log", low=1)
    eval_every: int = key("epochs between two evaluations (raw and averaged weights); the last epoch has one", low=1)
    tensorboard: bool = key("write TensorBoard events too")
    tracker: Literal["none", "wandb", "trackio"] = key("send the numbers to Weights & Biases or trackio too")
    save_every: float | None = key("minutes between checkpoints within an epoch; none: after epochs only", above=0)
    keep: int = key("checkpoints that are kept, the newest ones", low=1)


@dataclasses.dataclass(frozen=True)
class General:
    """the whole run"""

    seed: int = key("every random number of the run follows from it", low=0)
    on_nonfinite: Literal["stop", "skip"] = key("a step that is not finite: stop with a checkpoint, or leave it out")
    nonfinite_in_a_row: int = key("skip: so many steps in a row at most; one more ends the run", low=1)
    watchdog: float | None = key("minutes without a step, or a sign of life of a rank, that end the run", above=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A resolved recipe. Two runs are equal when their keys are, wherever they were read from."""

    seed: int
    on_nonfinite: str
    nonfinite_in_a_row: int
    watchdog: float | None
    data: DataConfig
    model: ModelConfig
    speed: SpeedConfig
    log: LogConfig
    stages: tuple[StageConfig, ...]
    source: str = dataclasses.field(compare=False)  # the recipe's path


SECTIONS = {
    "": General,
    "data": DataConfig,
    "model": ModelConfig,
    "stage": StageConfig,
    "speed": SpeedConfig,
    "log": LogConfig,
}


def base_values() -> dict[str, dict]:
    """The values of base.yaml by section, for `keys.parse` to show."""
    return _read_file(BASE_RECIPE).sections


def load_recipe(path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The run of a recipe file and the command line's overrides, checked key by key and then as a whole."""
    recipe, last = _read_file(path), _read_overrides(overrides or {})
    sections = recipe.sections
    if recipe.base is not None:
        base = _read_file(Path(path).parent / recipe.base)
        if base.base is not None or base.rows is not None:
            raise UserError(f"{path}: its base, {recipe.base}, must be complete: without `base:` and `stages:`")
        sections = {name: base.sections[name] | recipe.sections[name] for name in SECTIONS}

    def section(name, row):
        values = sections[name] | row | last[name]
        return keys.build(SECTIONS[name], values, _front(f"{path}: ", name))

    recipe = Recipe(
        **dataclasses.asdict(section("", {})),
        **{name: section(name, {}) for name in ("data", "model", "speed", "log")},
        stages=tuple(section("stage", row) for row in recipe.rows or [{}]),
        source=str(path),
    )
    _check(recipe)
    return recipe


def render_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: what its stages share under `stage:`, what differs in the rows of `stages:`. It
    depends on the keys alone, and `load` of it gives an equal run."""
    rows = [dataclasses.asdict(stage) for stage in recipe.stages]
    shared = {name: value for name, value in rows[0].items() if all(row[name] == value for row in rows)}
    text = "".join(f"{name}: {keys.spell(getattr(recipe, name))}\n" for name in keys.keys_of(General))
    for name in ("data", "model", "speed", "log"):
        text += _block(name, dataclasses.asdict(getattr(recipe, name)))
    text += _block("stage", shared)
    if len(rows) > 1:
        text += "stages:\n"
        for row in rows:
            own = [f"{name}: {keys.spell(value)}\n" for name, value in row.items() if name not in shared]
            text += "- " + "  ".join(own)
    return text


def _block(name, values):
    head = f"{name}:\n" if values else ""  # two stages may share nothing
    return head + "".join(f"  {row}: {keys.spell(value)}\n" for row, value in values.items())


def _front(place, section):
    """What stands in front of a key's name in a complaint."""
    return f"{place}{section}." if section else place


# --- reading -------------------------------------------------------------------------------------------------------


class _File(NamedTuple):
    """One YAML file, typed, with the keys it gives only."""

    sections: dict[str, dict]  # "" holds the keys without a section
    rows: list[dict] | None
    base: str | None


def _read_file(path) -> _File:
    content = keys.read_yaml(path)
    rows, base = content.pop("stages", None), content.pop("base", None)
    sections = {name: content.pop(name, {}) for name in SECTIONS if name}
    for name in content:
        if name not in keys.keys_of(General):
            homes = [part for part in sections if name in keys.keys_of(SECTIONS[part])]
            nearest = keys.nearest(name, ["base", "stages", *keys.keys_of(General), *sections])
            advice = f"it belongs under `{homes[0]}:`" if homes else f"the nearest is '{nearest}'"
            raise UserError(f"{path}: {name!r} is not a section; {advice}")
    sections[""] = content
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: base must be the name of one file beside this one")
    typed = {}
    for name, values in sections.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: {name} must hold keys, such as `{name}: {{key: value}}`, not {values!r:.60}")
        typed[name] = keys.read(SECTIONS[name], values, _front(f"{path}: ", name))
    return _File(typed, None if rows is None else _read_rows(path, rows), base)


def _read_rows(path, rows):
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: stages must be a list of rows, `- {{name: ...}}`; for one stage leave it out")
    typed = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: stages row {number} must hold keys of `stage:`, not {row!r:.60}")
        typed.append(keys.read(StageConfig, row, f"{path}: stages row {number}: "))
    return typed


def _read_overrides(overrides):
    paths = [_front("", name) + row for name, cls in SECTIONS.items() for row in keys.keys_of(cls)]
    for path in overrides:
        if path not in paths:
            raise UserError(f"--{path} is not a key; the nearest is --{keys.nearest(path, paths)}")
    return {
        name: keys.read(cls, keys.of_section(overrides, name), _front("--", name)) for name, cls in SECTIONS.items()
    }


# --- what keys must be to each other -------------------------------------------------------------------------------


def _check(recipe):
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        raise UserError(f"{recipe.source}: each stage needs a name of its own, not {', '.join(names)}")
    folder = Path(recipe.source).stem if recipe.log.name == "auto" else recipe.log.name
    for name in (folder, *names):
        if not re.fullmatch(r"\w[\w.-]{0,99}", name) or ".." in name:
            advice = "use letters, digits, - and _ only, 100 at most"
            advice += ", or set log.name" if recipe.log.name == "auto" and name == folder else ""
            raise UserError(f"{recipe.source}: the name {name!r:.60} becomes part of a path; {advice}")
    if "model" in names:
        raise UserError(f"{recipe.source}: a stage cannot be called model: model.safetensors is the last one's weights")
    given = {recipe.data.finetune_train is not None, recipe.data.finetune_val is not None}
    wanted = any(stage.data == "finetune" for stage in recipe.stages)
    if given != {wanted}:
        raise UserError(
            f"{recipe.source}: data.finetune_train and data.finetune_val belong to stages with data: finetune;"
            " a recipe has both and such a stage, or neither"
        )
    if recipe.speed.cuda_graphs and (not recipe.speed.compile or recipe.speed.parallel == "fsdp"):
        raise UserError(f"{recipe.source}: speed.cuda_graphs belongs to speed.compile: true and speed.parallel: ddp")
    for before, stage in zip((None, *recipe.stages), recipe.stages, strict=False):
        _check_stage(stage, before, recipe.speed.micro_batch, f"{recipe.source}: stage {stage.name}: ")


def _check_stage(stage, before, micro_batch, where):
    def need(holds, complaint):
        if not holds:
            raise UserError(where + complaint)

    need(
        stage.loss != "bce" or stage.smoothing == 0,
        f"loss bce with smoothing {stage.smoothing:g} makes every class a target; set smoothing: 0 or loss: ce",
    )
    if stage.mixing:
        need(stage.mix_chunk % 2 == 0, f"mix_chunk {stage.mix_chunk} must be even: samples are mixed in pairs")
        need(
            stage.batch % stage.mix_chunk == 0,
            f"batch {stage.batch} must be a multiple of mix_chunk {stage.mix_chunk}",
        )
    if micro_batch != "auto":
        need(
            stage.batch % micro_batch == 0,
            f"batch {stage.batch} must be a multiple of speed.micro_batch {micro_batch}",
        )
        need(
            not stage.mixing or micro_batch % 2 == 0,
            f"speed.micro_batch {micro_batch} must be even: samples are mixed in pairs",
        )
    if stage.ramp is not None:
        pixels, begins, ends = stage.ramp
        fits = 8 <= pixels <= stage.resolution
        need(fits, f"ramp begins at {pixels} px; it must be 8 to resolution {stage.resolution}")
        need(begins <= ends < stage.epochs, f"ramp {keys.spell(stage.ramp)} must end within {stage.epochs} epochs")
    low, high = stage.rrc_scale
    need(low <= high, f"rrc_scale {keys.spell(stage.rrc_scale)} must be [smallest, largest]")
    need(
        len(set(stage.three_ops)) == len(stage.three_ops),
        f"three_ops {keys.spell(stage.three_ops)} names an operation twice",
    )
    need(
        re.fullmatch(r"rand(-(m|n|mstd|inc)[0-9]+(\.[0-9]+)?)+", stage.rand_config),
        f"rand_config {stage.rand_config!r} must read like rand-m9-mstd0.5-inc1",
    )
    need(
        stage.warmup_epochs <= stage.epochs,
        f"warmup_epochs {stage.warmup_epochs} is more than epochs {stage.epochs}; set warmup_epochs too",
    )
    need(stage.min_lr <= stage.lr, f"min_lr {stage.min_lr:g} is above lr {stage.lr:g}")
    need(
        stage.warmup_epochs == 0 or stage.warmup_lr <= stage.lr,
        f"warmup_lr {stage.warmup_lr:g} is above lr {stage.lr:g}",
    )
    if stage.start == "ema":
        need(before is not None, "start: ema has no stage before it to take averaged weights from; set start: last")
        need(before.ema is not None, f"start: ema needs the averaged weights of stage {before.name}; give it an ema")
