"""A training step as the official DeiT code takes it, from timm's parts: the peer to measure against.

Eager, attention in single operations, a mask for each residual branch, timm's Mixup over the whole batch on normalised
float images, LAMB and the average of the weights parameter by parameter, and in each step the loss is read by the host
and the device waited for. bfloat16 autocast where ours has it (the official code: float16 with scaled gradients).
"""

import math
import sys

import timm
import timm.optim
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.layers import DropPath
from timm.utils import ModelEmaV2
from torch.nn import functional as F

from training.optim import parameter_groups


class ReferenceStep:
    """`mark(phase)` is called where a phase ends: data, forward, backward, optimizer."""

    def __init__(self, run, stage, *, device, mark):
        self.device, self.job, self.mark = device, run, mark
        classes = run.datasets[stage.data].classes
        self.model = timm.create_model(
            run.recipe.model.name,
            num_classes=classes,
            img_size=stage.resolution,
            init_values=run.recipe.model.layer_scale,
        ).to(device)
        for block in self.model.blocks:
            block.attn.fused_attn = False
            if stage.drop_path:
                block.drop_path1, block.drop_path2 = DropPath(stage.drop_path), DropPath(stage.drop_path)
        groups = parameter_groups(self.model, stage.weight_decay)
        self.optimizer = timm.optim.Lamb(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps, foreach=False)
        self.average = ModelEmaV2(self.model, decay=stage.ema)
        self.mixup = Mixup(stage.mixup, stage.cutmix, label_smoothing=stage.smoothing, num_classes=classes)
        self.mean, self.std = (
            torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        self.losses, self.steps = 0.0, 0

    def prepare(self, images, labels):
        """What the official loader's processes do ahead of time: normalised float32 images."""
        images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return images.contiguous(), labels

    def __call__(self, images, labels):
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        self.mark("data")
        images, targets = self.mixup(images, labels)
        targets = targets.gt(0.0).type(targets.dtype)
        with self.job.autocast():
            logits = self.model.train()(images)
            loss = F.binary_cross_entropy_with_logits(logits, targets)
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
        self.average.update(self.model)
        self.losses, self.steps = self.losses + value, self.steps + 1
        self.mark("optimizer")
