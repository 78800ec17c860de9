"""Who takes a training step: ours, a loop like the official code's, and timm's parts under torch.compile.

A step is made with `step_of`. `prepare(images, labels)`, once: uint8 images and labels in host memory -> what its
loader would hand over, in pinned memory for a GPU. Called with that, it takes the step, and calls `mark(phase)` where a
phase ends: data, forward, backward, optimizer. It has `network`, the module, and `average`, with the averaged weights.
"""

import math
import runpy
import sys
from collections.abc import Callable
from typing import NamedTuple

import timm
import timm.optim
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.layers import DropPath
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from bench.processes import ROOT
from bench.report import say
from config.recipe import load_recipe
from training import distributed, optim
from training.datasets import DataSet
from training.memory import compiling
from training.run import Run, precision
from training.stage import Stage, create_stage

# What is measured is the program's own function. Nobody imports a program, so it is read as a file.
forward_backward = runpy.run_path(str(ROOT / "train_imagenet.py"))["forward_backward"]


class Task(NamedTuple):
    """A step: the model at a resolution, samples at once and rate of stochastic depth."""

    title: str
    model: str
    resolution: int
    batch: int
    drop_path: float
    on: str  # cpu or cuda
    steps: tuple[str, ...]  # who takes it


ALL, DEPTH = ("ours", "exact", "reference", "timm-compiled"), ("ours", "exact")
ON_CPU = (*ALL, "ours-bf16")
SMALL, BASE = "deit3_small_patch16_224", "deit3_base_patch16_224"
TASKS = {
    "S112": Task("ViT-S/16, 112 px, batch 16, stochastic depth .05", SMALL, 112, 16, 0.05, "cpu", ON_CPU),
    "depth.45": Task("ViT-S/16, 112 px, batch 32, stochastic depth .45", SMALL, 112, 32, 0.45, "cpu", DEPTH),
    "depth.05": Task("ViT-S/16, 112 px, batch 32, stochastic depth .05", SMALL, 112, 32, 0.05, "cpu", DEPTH),
    "S224": Task("ViT-S/16, 224 px, batch 256, stochastic depth .05", SMALL, 224, 256, 0.05, "cuda", ALL),
    "B192": Task("ViT-B/16, 192 px, batch 256, stochastic depth .2", BASE, 192, 256, 0.2, "cuda", ALL),
}
QUICK = TASKS["S112"]._replace(title="quick: 6 blocks, 48 px, batch 16", model="deit3_micro_patch16_224", resolution=48)


def run_of(task: Task, device: torch.device, *, drop_path="exact", compiles=False, products="auto", **more) -> Run:
    """A task as a run of train_imagenet.py in one process, whatever the environment says. more: of the stage's keys."""
    keys = {
        "model.name": task.model, "stage.resolution": task.resolution, "stage.batch": task.batch,
        "stage.mix_chunk": task.batch, "stage.drop_path": task.drop_path, "speed.drop_path": drop_path,
        "speed.compile": compiles, "speed.device": device.type,
    } | {f"stage.{key}": value for key, value in more.items()}  # fmt: skip
    recipe = load_recipe(ROOT / "recipes/vit_s_800ep.yaml", {key: str(value) for key, value in keys.items()})
    ranks = distributed.Ranks(0, 1, device)
    return Run(recipe, ranks, {"main": DataSet(None, None, 1000)}, precision(products, device))


def step_of(name: str, task: Task, *, compiles: bool, device: torch.device, mark: Callable[[str], None]):
    """The step called `name`."""
    run = run_of(
        task, device, drop_path="subset" if name.startswith("ours") else "exact", compiles=compiles,
        products="bf16" if name == "ours-bf16" else "auto",
    )  # fmt: skip
    return {"reference": ReferenceStep, "timm-compiled": TimmStep}.get(name, OurStep)(run, mark)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory that a GPU copies from by itself."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def update(stage: Stage, loss: Tensor) -> Tensor:
    """What `train_epoch` does with the gradients of a batch. Returns 1.0, on the device, where the step is left out."""
    norm = optim.gradient_norm(stage.optimizer)
    skip = (~(loss.isfinite() & norm.isfinite())).float()
    optim.step(stage.optimizer, norm, clip_norm=stage.config.clip_norm, skip=skip, average=stage.average)
    stage.step_in_epoch, stage.step = stage.step_in_epoch + 1, stage.step + 1
    return skip


def begun(run: Run) -> Stage:
    """A fresh stage, ready to train, compiled where the run says so."""
    stage = create_stage(run, 0)
    stage.model.train()
    stage.micro_batch_size = stage.config.batch
    if run.recipe.speed.compile:
        compiling.compile_stage(run, stage, forward_backward, say=say)
    return stage


class OurStep:
    """The step of train_imagenet.py."""

    def __init__(self, run: Run, mark):
        self.run, self.mark = run, mark
        self.stage = begun(run)
        self.network, self.average = self.stage.model, self.stage.ema
        self.stage.network = self._forward

    def prepare(self, images, labels):
        return pinned(images, self.run.ranks.device), pinned(labels, self.run.ranks.device)

    def __call__(self, images, labels):
        stage, device = self.stage, self.run.ranks.device
        images, labels = distributed.to_device(images, device), distributed.to_device(labels, device)
        self.mark("data")
        loss = forward_backward(self.run, stage, images, labels)
        self.mark("backward")
        update(stage, loss)
        self.mark("optimizer")

    def _forward(self, inputs):
        logits = self.network(inputs)
        self.mark("forward")
        return logits


def _timms_network(run: Run) -> nn.Module:
    """timm's model on the device, with a mask for each residual branch."""
    stage, model = run.recipe.stages[0], run.recipe.model
    network = timm.create_model(
        model.name, num_classes=1000, img_size=stage.resolution, init_values=model.layer_scale
    ).to(run.ranks.device)
    for block in network.blocks if stage.drop_path else ():
        block.drop_path1, block.drop_path2 = DropPath(stage.drop_path), DropPath(stage.drop_path)
    return network.train()


def _timms_lamb(run: Run, network: nn.Module, **more) -> torch.optim.Optimizer:
    stage = run.recipe.stages[0]
    groups = optim.parameter_groups(network, stage.weight_decay)
    return timm.optim.Lamb(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps, **more)


def _timms_mixup(run: Run) -> Mixup:
    stage = run.recipe.stages[0]
    return Mixup(stage.mixup, stage.cutmix, label_smoothing=stage.smoothing, num_classes=1000)


class ReferenceStep:
    """As the official DeiT code takes it, from timm's parts: eager, attention in single operations, timm's Mixup over
    the whole batch, LAMB and the average of the weights parameter by parameter, and in each step the loss is read by
    the host and the device waited for. bfloat16 autocast where ours has it (the official code: float16, scaled
    gradients)."""

    def __init__(self, run: Run, mark):
        self.run, self.mark, self.device = run, mark, run.ranks.device
        self.network = _timms_network(run)
        for block in self.network.blocks:
            block.attn.fused_attn = False
        self.optimizer, self.mixup = _timms_lamb(run, self.network, foreach=False), _timms_mixup(run)
        self.ema = ModelEmaV2(self.network, decay=run.recipe.stages[0].ema)
        self.average = self.ema.module
        self.losses = 0.0

    def prepare(self, images, labels):
        """Normalised float32 images, which its loader's processes make, in pinned memory as it asks for."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        images = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
        return pinned(images.contiguous(), self.device), pinned(labels, self.device)

    def __call__(self, images, labels):
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        self.mark("data")
        images, targets = self.mixup(images, labels)
        targets = targets.gt(0.0).type(targets.dtype)
        with self.run.autocast():
            loss = F.binary_cross_entropy_with_logits(self.network(images), targets)
        value = loss.item()
        if not math.isfinite(value):
            sys.exit(f"Loss is {value}, stopping training")
        self.mark("forward")
        self.optimizer.zero_grad()
        loss.backward()
        self.mark("backward")
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.ema.update(self.network)
        self.losses += value
        self.mark("optimizer")


class TimmStep:
    """timm's parts in a plain loop that does not wait, with the model compiled. As timm's prefetcher does, uint8 images
    go to the device and are normalised there."""

    def __init__(self, run: Run, mark):
        self.run, self.mark, self.device = run, mark, run.ranks.device
        self.network = _timms_network(run)
        self.compiled = torch.compile(self.network, dynamic=False)
        self.optimizer, self.mixup = _timms_lamb(run, self.network), _timms_mixup(run)
        self.ema = ModelEmaV3(self.network, decay=run.recipe.stages[0].ema, foreach=True)
        self.average = self.ema.module
        self.mean, self.std = (
            torch.tensor([255 * value for value in values], device=self.device).view(3, 1, 1)
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )

    def prepare(self, images, labels):
        return pinned(images.permute(0, 3, 1, 2).contiguous(), self.device), pinned(labels, self.device)

    def __call__(self, images, labels):
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        images = images.float().sub_(self.mean).div_(self.std)
        self.mark("data")
        images, targets = self.mixup(images, labels)
        with self.run.autocast():
            loss = F.binary_cross_entropy_with_logits(self.compiled(images), (targets > 0).float())
        self.mark("forward")
        loss.backward()
        self.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.network)
        self.mark("optimizer")
