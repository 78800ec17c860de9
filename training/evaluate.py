"""Exact evaluation: every image once, also across ranks, one centre crop or that and its mirror image, counted in
integers.

Stock FFCV pads the last ranks with images that are counted twice; here each rank has its own part (order.py).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import distributed
from training.mixing import normalize


class Result(NamedTuple):
    """Shares (0..1) of images whose class is the first, or among the first five, and the mean cross-entropy (nats)."""

    top1: float
    top5: float
    loss: float
    images: int


class Exam(NamedTuple):
    """How outputs are marked. `columns`: which of the model's outputs are the data's classes, in the data's order, all
    others are left out; None: all, as they are. `answers`: int64 (images of this rank, some), the right classes of each
    image, filled up with -1, an image without any does not count; None: each image's label."""

    columns: Tensor | None = None
    answers: Tensor | None = None


class Marks(NamedTuple):
    """The result of an exam, whose loss is not a number where it has `answers`; and for each label int64 (labels, 3):
    right first, right among the first five, images."""

    result: Result
    by_label: Tensor


@torch.inference_mode()
def evaluate(
    models: Sequence[nn.Module], batches, *, device: torch.device, autocast, flip: bool = False
) -> list[Result]:
    """Runs each of `models` over `batches` of (uint8 images, labels), which are read once. `autocast`: a function that
    gives a fresh context. `flip`: each image counts by the mean of its logits and those of its mirror image."""
    were_training = [model.training for model in models]
    counts = torch.zeros(len(models), 3, dtype=torch.int64, device=device)
    losses = torch.zeros(len(models), dtype=torch.float64, device=device)
    for model in models:
        model.eval()
    for images, labels in batches:
        for number, model in enumerate(models):
            logits = _logits(model, images, autocast=autocast, flip=flip)
            right = _first_five(logits, labels[:, None])
            counts[number] += torch.stack([right[:, 0].sum(), right.sum(), labels.new_tensor(len(labels))])
            losses[number] += F.cross_entropy(logits, labels, reduction="sum")
    for model, was_training in zip(models, were_training, strict=True):
        model.train(was_training)
    counts, losses = distributed.all_reduce_sum(counts), distributed.all_reduce_sum(losses)
    return [_result(row, loss) for row, loss in zip(counts, losses, strict=True)]


@torch.inference_mode()
def sit(
    model: nn.Module, batches, exams: Sequence[Exam], *, labels: int, device: torch.device, autocast, flip: bool
) -> list[Marks]:
    """Several exams in one pass over all ranks' `batches`, which have so many different `labels`; `model` in evaluation
    mode."""
    counts = [torch.zeros(labels, 3, dtype=torch.int64, device=device) for _ in exams]
    losses = torch.zeros(len(exams), dtype=torch.float64, device=device)
    done = 0
    for logits, given in outputs(model, batches, autocast=autocast, flip=flip):
        for number, exam in enumerate(exams):
            chosen = logits if exam.columns is None else logits[:, exam.columns]
            answers = given[:, None] if exam.answers is None else exam.answers[done : done + len(given)]
            right = _first_five(chosen, answers)
            marks = torch.stack([right[:, 0], right.any(1), (answers >= 0).any(1)], dim=1)
            counts[number].index_add_(0, given, marks.long())
            if exam.answers is None:
                losses[number] += F.cross_entropy(chosen, given, reduction="sum")
            else:
                losses[number] = math.nan
        done += len(given)
    losses = distributed.all_reduce_sum(losses)
    by_label = [distributed.all_reduce_sum(table) for table in counts]
    return [Marks(_result(table.sum(0), loss), table.cpu()) for table, loss in zip(by_label, losses, strict=True)]


@torch.inference_mode()
def outputs(model: nn.Module, batches, *, autocast, flip: bool):
    """Yields float32 logits (n, classes) and labels (n,), batch by batch; `model` in evaluation mode."""
    for images, labels in batches:
        yield _logits(model, images, autocast=autocast, flip=flip), labels


def _logits(model, images, *, autocast, flip):
    inputs = normalize(images)
    with autocast():
        logits = model(inputs).float()
        return (logits + model(inputs.flip(3)).float()) / 2 if flip else logits


def _first_five(logits, answers):
    """Whether the most likely five classes, or all where there are fewer, are among each image's answers."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (best[:, :, None] == answers[:, None, :]).any(2)


def _result(counts, loss):
    top1, top5, images = counts.tolist()
    return Result(top1 / images, top5 / images, loss.item() / images, images)
