"""Exact evaluation: every image once, also across ranks, one centre crop or that and its mirror image, counted in
integers.

Stock FFCV pads the last ranks with images that are counted twice; here each rank has its own part (order.py).
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from training import distributed
from training.mixing import normalize


class Result(NamedTuple):
    """Shares (0..1) of images whose class is the first, or among the first five, and the mean cross-entropy (nats)."""

    top1: float
    top5: float
    loss: float
    images: int


@torch.inference_mode()
def evaluate(model: nn.Module, batches, *, device: torch.device, autocast, flip: bool = False) -> Result:
    """Runs `model` over `batches` of (uint8 images, labels). `autocast`: a function that gives a fresh context. `flip`:
    each image counts by the mean of its logits and those of its mirror image."""
    was_training = model.training
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for logits, labels in outputs(model.eval(), batches, autocast=autocast, flip=flip):
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        counts += torch.stack([best[:, 0].sum(), best.sum(), labels.new_tensor(len(labels))])
        loss += F.cross_entropy(logits, labels, reduction="sum")
    model.train(was_training)
    top1, top5, images = distributed.sum_over_ranks(counts).tolist()
    return Result(top1 / images, top5 / images, distributed.sum_over_ranks(loss).item() / images, images)


@torch.inference_mode()
def outputs(model: nn.Module, batches, *, autocast, flip: bool):
    """Yields float32 logits (n, classes) and labels (n,), batch by batch; `model` in evaluation mode."""
    for images, labels in batches:
        inputs = normalize(images)
        with autocast():
            logits = model(inputs).float()
            if flip:
                logits = (logits + model(inputs.flip(3)).float()) / 2
        yield logits, labels
