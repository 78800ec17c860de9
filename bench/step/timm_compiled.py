"""timm's parts in a plain loop that does not wait, with the model compiled."""

import timm
import timm.optim
import torch
from timm.data import Mixup
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch.nn import functional as F

from training import distributed, mixing, optim


class TimmStep:
    """`mark(phase)` is called where a phase ends. Images are float, as timm's loader makes them."""

    def __init__(self, run, stage, *, device, mark):
        self.device, self.job, self.mark = device, run, mark
        classes = run.datasets[stage.data].classes
        network = timm.create_model(
            run.recipe.model.name,
            num_classes=classes,
            img_size=stage.resolution,
            init_values=run.recipe.model.layer_scale,
        ).to(device)
        for block in network.blocks if stage.drop_path else ():
            block.drop_path1, block.drop_path2 = DropPath(stage.drop_path), DropPath(stage.drop_path)
        self.network, self.model = network, torch.compile(network.train(), dynamic=False)
        groups = optim.parameter_groups(network, stage.weight_decay)
        self.optimizer = timm.optim.Lamb(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps)
        self.average = ModelEmaV3(network, decay=stage.ema, foreach=True)
        self.mixup = Mixup(stage.mixup, stage.cutmix, label_smoothing=stage.smoothing, num_classes=classes)

    def prepare(self, images, labels):
        return mixing.normalize(images), labels

    def __call__(self, images, labels):
        images, labels = distributed.to_device(images, self.device), distributed.to_device(labels, self.device)
        self.mark("data")
        images, targets = self.mixup(images, labels)
        with self.job.autocast():
            loss = F.binary_cross_entropy_with_logits(self.model(images), (targets > 0).float())
        self.mark("forward")
        loss.backward()
        self.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.network)
        self.mark("optimizer")
