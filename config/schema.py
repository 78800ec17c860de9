"""The options of a recipe: each with its type, its range and a line of help. recipes/base.yaml holds their values.

The limits are far from any use; they refuse slips of the hand, such as lr=1e300, before anything is built.
"""

import dataclasses
from typing import ClassVar, Literal

from config.options import option
from ffcv_ops.augment import chain

LEAST = 1e-20  # of factors: what is smaller is 0 in float32 sooner or later
MOST_EPOCHS = 100_000
MOST_SAMPLES = 1_000_000  # in a batch
MOST_LR = 10_000
MOST_MINUTES = 100_000  # 69 days


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """data: the files a run reads, and how"""

    train: str = option(".beton to train on; a pattern with a * names the shards of one data set")
    val: str = option(".beton to evaluate on")
    finetune_train: str | None = option(".beton to train on, of stages with data: finetune")
    finetune_val: str | None = option(".beton to evaluate on, of stages with data: finetune")
    workers: int | Literal["auto"] = option(
        "threads of the loader, per rank; auto: this rank's cores", low=1, high=1024, changes="speed"
    )
    cache: Literal["os", "process"] = option(
        "os: the system's page cache holds the file; process: read page by page", changes="speed"
    )
    decoder: Literal["auto", "libjpeg"] = option(
        "auto: our own decoder for baseline JPEGs where the CPU has AVX2; libjpeg: libjpeg-turbo", changes="speed"
    )
    shuffle_pages: int | None = option("pages of the file that are shuffled together; none: all", low=1, high=10**9)
    on_bad_sample: Literal["stop", "replace"] = option("a stored image that does not decode: stop, or show another one")
    bad_limit: float = option("replace: share of an epoch's samples above which the run stops", low=0, high=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """model: what is trained; the image size is the stage's"""

    name: str = option("timm's name of the architecture")
    args: str | None = option("further arguments of timm's model: patch_size=8, depth=6, reg_tokens=4")
    layer_scale: float | None = option("LayerScale's initial value; none: without it", low=LEAST, high=100)
    classes: int | Literal["auto"] = option("size of the head; auto: the classes of the .beton", low=1, high=10**6)
    mean: tuple[float, float, float] | Literal["auto"] = option(
        "of the images' channels in 0..1, which becomes 0; auto: the weights', else ImageNet's", low=0, high=1
    )
    std: tuple[float, float, float] | Literal["auto"] = option(
        "standard deviation, which becomes 1; auto: the weights', else ImageNet's", low=0.001, high=1
    )
    blur_pool: bool = option("blur before each strided convolution of 16 channels or more")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """stage: what changes the result, one row of stages: each"""

    name: str = option("name in logs and files")
    data: Literal["main", "finetune"] = option("data.train and data.val, or data.finetune_train and data.finetune_val")
    resolution: int = option("side of the square training image, pixels", low=8, high=4096)
    ramp: tuple[int, int, int] | None = option(
        "pixels at first; epochs between which they rise to resolution, in steps of 32", low=0, high=MOST_EPOCHS
    )
    epochs: int = option("passes of as many samples as there are images", low=1, high=MOST_EPOCHS)
    batch: int = option("samples per optimizer step, over all devices", low=1, high=MOST_SAMPLES)
    crop: Literal["rrc", "src", "center"] = option("random resized crop, simple random crop, or the evaluation crop")
    rrc_scale: tuple[float, float] = option("rrc: smallest and largest share of the image's area", low=1e-4, high=1)
    interpolation: Literal["auto", "bicubic", "bilinear"] = option(
        "of the resizing, antialiased, in training and evaluation; auto: the weights', else bicubic"
    )
    min_oversampling: float | None = option(
        "decode less (a smaller level, a scaled DCT, luma alone) where so many pixels per output pixel remain",
        above=0,
        high=100,
    )
    flip: float = option("probability of a horizontal flip", low=0, high=1)
    augment: str = option(chain.help_text())
    jitter: float | None = option("color jitter: brightness, contrast and saturation in 1 -+ this", above=0, high=1)
    erasing: float = option("probability of random erasing", low=0, high=1)
    erasing_mode: Literal["const", "rand", "pixel"] = option("erase with the mean color, one random color, or noise")
    repeats: int = option("views of an image in an epoch (repeated augmentation)", low=1, high=100)
    sampling: Literal["uniform", "balanced"] = option("images of an epoch: all alike, or of each class equally many")
    mixup: float = option("alpha of mixup; 0: no mixup", low=0, high=100)
    cutmix: float = option("alpha of CutMix; 0: no CutMix", low=0, high=100)
    mix_chunk: int = option("samples that share one mixing draw", low=2, high=MOST_SAMPLES)
    smoothing: float = option("label smoothing", low=0, below=1)
    loss: Literal["bce", "ce"] = option("binary cross-entropy of yes-or-no targets, or cross-entropy of soft ones")
    bce_threshold: float | None = option(
        "bce: targets above this are a full yes, all others a no; none: they are shares", low=0, below=1
    )
    class_weights: Literal["none", "balanced"] = option("ce: weights of the classes, 1 / their share of the images")
    distill: Literal["none", "hard", "soft"] = option("learn from a teacher's first class, or its distribution, too")
    teacher: str | None = option("distill: timm's name of a pretrained model, local-dir:FOLDER or hf-hub:NAME")
    distill_alpha: float = option("distill: the teacher's share of the loss", low=0, high=1)
    distill_tau: float = option("distill soft: temperature", low=0.01, high=1000)
    drop_path: float = option("stochastic depth, the same rate in every block", low=0, below=1)
    freeze: int | Literal["backbone"] | None = option(
        "not trained: all but the classifier, or the stem and so many blocks", low=0, high=1000
    )
    optimizer: str = option("lamb, adamw, sgd; or one of timm's (muon, lion, ...); or torch.NAME")
    lr: float = option("peak learning rate, for the whole batch, never rescaled", low=LEAST, high=MOST_LR)
    layer_decay: float | None = option("learning rate of a layer / that of the next one up (timm's)", low=0.01, high=1)
    min_lr: float = option("learning rate at the cosine's end", low=0, high=MOST_LR)
    warmup_epochs: int = option("epochs of linear warm-up, part of the cosine's epochs", low=0, high=MOST_EPOCHS)
    warmup_lr: float = option("learning rate at the warm-up's start", low=0, high=MOST_LR)
    schedule: Literal["epoch", "step", "linear"] = option(
        "how the learning rate falls: cosine, moving once an epoch or each step; or a straight line, each step"
    )
    weight_decay: float = option("on weight matrices only", low=0, high=100)
    betas: tuple[float, float] = option("lamb, adamw: decay of the two moments", low=0, below=1)
    eps: float = option("lamb, adamw: added to the denominator", low=LEAST, high=1)
    momentum: float = option("sgd: momentum", low=0, below=1)
    nesterov: bool = option("sgd: Nesterov's momentum")
    clip_norm: float | None = option("largest global norm of the gradient", low=LEAST, high=10**6)
    ema: float | None = option("decay per step of the averaged weights", above=0, below=1)
    best: Literal["none", "top1", "balanced", "val_loss", "ema_top1"] = option(
        "keep the weights of the epoch that was best by this measure too"
    )
    patience: int | None = option(
        "end the stage after so many epochs without a better one by `best`", low=1, high=MOST_EPOCHS
    )
    start: Literal["last", "ema"] = option("which weights of the stage before to start from")
    head: Literal["keep", "new", "map"] = option(
        "the classifier: kept, begun anew, or rows of the same class names kept"
    )
    eval_resolution: int | None = option("evaluation: side of the image, pixels; none: resolution", low=8, high=4096)
    eval_crop: float | Literal["auto"] = option(
        "evaluation: share of the short side inside the center crop; auto: the weights', else 1", low=0.1, high=1
    )
    eval_flip: bool = option("evaluation: mean of the logits of each image and its mirror image")

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

    device: Literal["auto", "cpu", "cuda"] = option("auto: cuda where there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("of the forward pass; auto: bf16 or fp16 on a GPU")
    compile: bool | Literal["max-autotune"] = option(
        "torch.compile the mixing and the model's blocks; max-autotune: tries kernels for minutes"
    )
    deterministic: bool = option("a GPU's kernels that repeat their bits only; slower, and not for every model")
    cuda_graphs: bool = option("compile: the whole model, with its kernels replayed as CUDA graphs")
    drop_path: Literal["exact", "subset"] = option("stochastic depth: a mask, or compute the kept samples only")
    parallel: Literal["ddp", "fsdp"] = option("several devices: the model on each, or sharded over them (FSDP2)")
    micro_batch: int | Literal["auto"] = option(
        "samples per forward pass and device; auto: as many as fit", low=1, high=MOST_SAMPLES
    )
    grad_checkpointing: bool = option("compute what is inside of a block twice instead of keeping it (timm's)")
    channels_last: bool = option("memory format of the images, and of a convolutional model's weights")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """log: what is written, and where"""

    changes: ClassVar[str] = "records"

    out: str = option("folder of the run folders")
    name: str = option("this run's folder in it; auto: the recipe's name")
    every: int = option("steps between two lines of the log", low=1, high=10**9)
    eval_every: int = option(
        "epochs between two evaluations (raw and averaged weights); the last epoch has one", low=1, high=MOST_EPOCHS
    )
    tensorboard: bool = option("write TensorBoard events too")
    tracker: Literal["none", "wandb"] = option("send the numbers to Weights & Biases too")
    save_every: float | None = option(
        "minutes between checkpoints within an epoch; none: after epochs only", above=0, high=MOST_MINUTES
    )
    keep: int = option("checkpoints that are kept, the newest ones", low=1, high=10**6)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """eval: what --eval-only looks at"""

    changes: ClassVar[str] = "records"

    data: Literal["auto"] | tuple[str, ...] = option(
        ".beton files to evaluate on; auto: the last stage's validation", default="auto"
    )
    out: str = option("folder of the results; auto: the run that --init is or lies in, if it is one", default="auto")


@dataclasses.dataclass(frozen=True)
class GeneralConfig:
    """the whole run"""

    seed: int = option("every random number of the run follows from it", low=0, high=2**53)
    on_nonfinite: Literal["stop", "skip"] = option("a step that is not finite: stop with a checkpoint, or leave it out")
    nonfinite_in_a_row: int = option("skip: so many steps in a row at most; one more ends the run", low=1, high=10**6)
    watchdog: float | None = option(
        "minutes without a step, or a sign of life of a rank, that end the run", low=0.01, high=MOST_MINUTES
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A resolved recipe. Two recipes are equal when their options are, wherever they were read from."""

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


# What `auto` means without weights that come with a configuration of their own: ImageNet's, and the paper's.
WITHOUT_WEIGHTS = {
    "model": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "stage": {"interpolation": "bicubic", "eval_crop": 1.0},
}
SECTIONS = {
    "": GeneralConfig,
    "data": DataConfig,
    "model": ModelConfig,
    "stage": StageConfig,
    "speed": SpeedConfig,
    "log": LogConfig,
}
