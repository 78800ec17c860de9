"""One stage in training: the model and all that trains it, and where it stands.

A stage is made fresh by `create_stage`, from the weights of the stage before if there is one. `load_state_dict` puts a
checkpoint into it. Random numbers are no part of its state: all of them follow from (seed, step, place in the batch).
"""

import copy
import math
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from config import schedule
from config.recipe import StageConfig
from ffcv_ops import mixing, rng
from ffcv_ops.errors import UserError
from ffcv_ops.rng import RandomKey
from training import datasets, distributed, optim
from training.distillation import load_teacher, separate_outputs
from training.loss_history import LossHistory
from training.network import adapt_weights, freezing, model, stochastic_depth
from training.network.stochastic_depth import DepthMasks
from training.run import Run
from training.step_stats import Meter, StepStats


@dataclass
class Stage:
    """`epoch`, `step_in_epoch` and `step` (of the whole run) count what is done."""

    config: StageConfig
    number: int  # in the recipe
    seed: int  # of this stage's draws
    model: nn.Module
    ema: nn.Module | None  # a model with the exponential moving average of the weights
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # does something with fp16 only
    drop_path_masks: DepthMasks
    epoch: int = 0
    step_in_epoch: int = 0
    teacher: nn.Module | None = None  # that the model imitates (stage.distill)
    class_weights: Tensor | None = None  # of the loss, (classes,)
    step: int = 0
    resolution: int = 0  # side of the training images at present, pixels
    best: float = -math.inf  # of stage.best, the higher the better, in the epoch `best_epoch`
    best_epoch: int = 0
    epoch_stats: StepStats = field(default_factory=StepStats)  # of the epoch under way, up to the last log point
    halted: Tensor | None = None  # 1.0 on the device once a step was not finite and no more are to follow

    # How it runs on this machine; set before the first step.
    network: nn.Module | None = None  # the model as it is called: itself, or the model in DDP
    mix: object = mixing.mix  # or the same compiled
    patches: mixing.Patches | None = None  # what the network is given, where it is no images
    micro_batch_size: int = 0  # samples that go through the model at once
    train_loader: object = None
    val_loader: object = None
    meter: Meter | None = None
    loss_history: LossHistory = field(default_factory=LossHistory)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_loader) if self.train_loader is not None else 0

    @property
    def step_in_stage(self) -> int:
        """Optimizer steps that this stage has done. It keys all random numbers of the next one."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def model_side(self) -> int:
        """Side of the images that the model as it is may be shown in training at most, pixels."""
        return self.config.resolution if model.tokens(self.model) is None else self.resolution

    @property
    def eval_side(self) -> int:
        """Side of the images of an evaluation now, pixels: a model with patches takes one size, that of training."""
        return self.config.eval_side if model.tokens(self.model) is None else self.resolution

    @property
    def may_end(self) -> bool:
        """Whether the epoch that is done is the last one, unless it is better than all before."""
        patience = self.config.patience
        return self.epoch >= self.config.epochs or (patience is not None and self.epoch - self.best_epoch >= patience)

    @property
    def is_epoch_end(self) -> bool:
        return self.step_in_epoch == self.steps_per_epoch

    @property
    def average(self) -> optim.Average | None:
        """What the optimizer moves along with the weights."""
        return None if self.ema is None else optim.Average(self.ema, self.model, self.config.ema)

    def set_resolution(self, pixels: int) -> bool:
        """Goes on with images of that side. Returns whether the model was changed for it, as one with patches is: the
        position embedding is resampled as between stages, that of the average and its moments too."""
        changed = pixels != self.resolution and model.tokens(self.model) is not None
        self.resolution = pixels
        if changed:
            adapt_weights.set_resolution(self.model, pixels, self.optimizer)
            if self.ema is not None:
                adapt_weights.set_resolution(self.ema, pixels)
            self.network = self.model  # not in DDP, which knows the old parameter
        return changed

    def state_dict(self) -> dict:
        """All that must survive a restart, as tensors and plain values."""
        return {
            "stage": self.number,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "resolution": self.resolution,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "epoch_stats": asdict(self.epoch_stats),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Puts the content of a checkpoint into a freshly made stage. UserError where it does not fit."""
        try:
            self.set_resolution(state.get("resolution", self.resolution))
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch_stats = StepStats(**state["epoch_stats"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"the checkpoint of step {state['step']} is not one of this run ({reason:.200})") from error
        optim.match_memory_format(self.optimizer)
        self.epoch, self.step_in_epoch, self.step = state["epoch"], state["step_in_epoch"], state["step"]
        self.best, self.best_epoch = state.get("best", -math.inf), state.get("best_epoch", 0)


def create_stage(run: Run, number: int, start_weights: dict[str, Tensor] | None = None, step: int = 0) -> Stage:
    """A fresh model at the stage's first resolution, with `start_weights` if there are any, and a new optimizer.

    start_weights: a state_dict, of the stage before or of --init; position embedding and head are adapted. step: of
    the run, up to here. UserError where model, weights and keys do not fit together.
    """
    recipe, config, device = run.recipe, run.recipe.stages[number], run.ranks.device
    torch.manual_seed(recipe.seed)  # initial weights are the only draws of torch's global generator
    classes, resolution = run.datasets[config.data].classes, schedule.resolution(config, 0)
    network = model.of_recipe(recipe.model, resolution=resolution, classes=classes, drop_path=config.drop_path)
    if start_weights is not None:
        _load_start_weights(run, number, network, start_weights)
    _check_model(run, config, network)
    network.to(device)
    _check_sizes(run, config, network)
    convolutional = model.tokens(network) is None
    torch.backends.cudnn.benchmark = convolutional and not recipe.speed.deterministic  # tries the ways to convolve
    if recipe.speed.channels_last and convolutional:  # convolutions are faster so, transformers not
        network.to(memory_format=torch.channels_last)
    if config.freeze is not None:
        freezing.freeze(network, config.freeze)
    if recipe.speed.grad_checkpointing:
        model.checkpoint_blocks(network, recipe.model.name)
    teacher = weights = None
    if config.distill != "none":
        separate_outputs(network)
        teacher = load_teacher(recipe.model, config, classes).to(device)
    if config.class_weights == "balanced":
        weights = torch.from_numpy(datasets.class_weights(run.datasets[config.data])).to(device)
    return Stage(
        config,
        number,
        seed=stage_seed(recipe.seed, number),
        model=network,
        ema=copy.deepcopy(network).eval().requires_grad_(False) if config.ema is not None else None,
        optimizer=optim.build(network, config),
        scaler=torch.amp.GradScaler(device.type, enabled=run.precision == torch.float16),
        drop_path_masks=DepthMasks(network, subset=recipe.speed.drop_path == "subset"),
        teacher=teacher,
        class_weights=weights,
        step=step,
        resolution=resolution,
        network=network,
        patches=_patches(run, network, teacher),
    )


def _patches(run, network, teacher):
    """On GPUs only: a matrix product rounds in another order than a convolution. A teacher wants images."""
    side = model.patch_side(network)
    takes_images = side is None or teacher is not None or run.ranks.device.type == "cpu"
    return None if takes_images else mixing.Patches(side, run.precision)


def stage_seed(seed: int, number: int) -> int:
    """A seed for each stage, so that a fine-tune does not show the crops of the pre-training again (63 bits)."""
    return int(rng.bits(RandomKey(seed, number), rng.STAGE)) >> 1


def _check_model(run, config, network):
    name = run.recipe.model.name
    if run.recipe.speed.drop_path == "subset" and not stochastic_depth.has_subsets(network):
        raise UserError(f"speed.drop_path subset is for deit3 models; for {name} use exact")
    if model.tokens(network) is None:
        return
    if config.eval_side != config.resolution:
        raise UserError(f"stage {config.name}: {name} is evaluated at the size of its training; no eval_resolution")
    if config.ramp and not isinstance(network, model.RESIZABLE):
        raise UserError(f"stage {config.name}: {name} keeps its resolution; leave out ramp")
    if config.ramp and (run.recipe.speed.cuda_graphs or run.recipe.speed.parallel == "fsdp" or config.teacher):
        wrong = "ramp changes the position embedding of a model with patches"
        without = "speed.cuda_graphs, speed.parallel: fsdp and teacher"
        raise UserError(f"stage {config.name}: {wrong}; leave it out, or {without}")


@torch.no_grad()
def _check_sizes(run, config, network):
    """UserError where the images are too small for the model's patches, windows or strides: one goes through it."""
    first = schedule.resolution(config, 0)
    sides = {first} if model.tokens(network) is not None else {first, config.resolution, config.eval_side}
    network.eval()
    for side in sorted(sides):
        try:
            network(torch.zeros(1, 3, side, side, device=run.ranks.device))
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"stage {config.name}: {run.recipe.model.name} cannot take images of {side} x {side} px ({reason:.200})"
            ) from error
    network.train()


def _load_start_weights(run, number, network, start_weights):
    config = run.recipe.stages[number]
    say = run.log.say if run.log else print
    class_map = None
    if config.head == "map":  # the classes that both data sets have keep their weights
        data = run.datasets[config.data]
        before = run.datasets.get(run.recipe.stages[number - 1].data) if number else None
        class_map = adapt_weights.match_classes(
            adapt_weights.num_classes(start_weights, network),
            data.classes,
            old_names=before.train.class_names if before else None,
            new_names=data.train.class_names,
        )
        kept = sum(number >= 0 for number in class_map)
        say(f"stage {config.name}: {kept} of {len(class_map)} classes keep their weights")
    adapted = adapt_weights.adapt_state_dict(start_weights, network, head=config.head, class_map=class_map, say=say)
    adapt_weights.load_weights(network, adapted)


def next_start_weights(following: StageConfig, stage: Stage) -> dict[str, Tensor]:
    """What the stage after `stage` starts from, on the host, so that the device does not hold two models."""
    source = stage.ema if following.start == "ema" else stage.model
    full = distributed.full_state_dict(source.state_dict(), is_main=True)
    return {name: tensor.cpu() for name, tensor in full.items()}
