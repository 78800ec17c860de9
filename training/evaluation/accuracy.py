"""Top-1 and top-5, counted in integers and by class: a reducer of the evaluation loop."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training import distributed


class LabelSpec(NamedTuple):
    """Which outputs count, and what the right answers are.

    `class_map`: int64 (classes of the data,), the model's output for each class of the data, all others are left out;
    None: the outputs are the data's classes. `answers`: int64 (images of this rank, most), the right classes of each
    image, filled up with -1; an image without any does not count. None: each image's label is its answer.
    """

    class_map: Tensor | None = None
    answers: Tensor | None = None


OWN_LABELS = LabelSpec()


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Shares (0..1) of images whose class is the first, or among the first five, and the mean cross-entropy (nats),
    which is not a number where the right answers are other than the labels."""

    top1: float
    top5: float
    loss: float
    images: int
    # int64 (classes, 3), on the host: right first, right among the first five, images
    by_class: Tensor = dataclasses.field(compare=False, repr=False)

    @property
    def balanced(self) -> float:
        """The mean of the classes' top-1, of those with images."""
        right, _, images = self.by_class[self.by_class[:, 2] > 0].double().T
        return float((right / images).mean())

    @property
    def majority(self) -> float:
        """Top-1 of always saying the largest class."""
        return float(self.by_class[:, 2].max()) / self.images

    def judgement(self, names: Sequence[str]) -> str:
        """What top-1 hides where classes are of different size, in one line."""
        said = f"balanced top-1 {100 * self.balanced:.2f} % (mean of the classes); the largest class is"
        return f"{said} {100 * self.majority:.2f} % of the images{self.never_right(names)}"

    def never_right(self, names: Sequence[str]) -> str:
        """Which classes of those with images are not once recognized, in words; "" where there are none."""
        right, _, images = self.by_class.T
        never = ((images > 0) & (right == 0)).nonzero().flatten().tolist()
        if not never:
            return ""
        shown = ", ".join(names[number] if number < len(names) else str(number) for number in never[:5])
        of = int((images > 0).sum())
        return f"; {len(never):,} of {of:,} classes have 0 %: {shown}{', ...' if len(never) > 5 else ''}"


class CountAccuracy:
    """Reduces to an `Accuracy`. `classes`: of the data's labels."""

    def __init__(self, classes: int, device: torch.device, spec: LabelSpec = OWN_LABELS):
        self.spec = spec
        self.counts = torch.zeros(classes, 3, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.seen = 0  # images of this rank

    def update(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        answers = labels[:, None]
        if self.spec.answers is not None:
            answers = self.spec.answers[self.seen : self.seen + len(labels)]
        self.seen += len(labels)
        if self.spec.class_map is not None:
            logits = logits[:, self.spec.class_map]
        first_five = logits.topk(min(5, logits.shape[1]), dim=1).indices
        right = (first_five[:, :, None] == answers[:, None, :]).any(2)
        marks = torch.stack([right[:, 0], right.any(1), (answers >= 0).any(1)], dim=1)
        self.counts.index_add_(0, labels, marks.long())
        if self.spec.answers is None:
            self.loss += F.cross_entropy(logits, labels, reduction="sum")

    def result(self) -> Accuracy:
        by_class, loss = distributed.all_reduce_sum(self.counts).cpu(), distributed.all_reduce_sum(self.loss).item()
        top1, top5, images = by_class.sum(0).tolist()
        loss = loss / images if self.spec.answers is None else math.nan
        return Accuracy(top1 / images, top5 / images, loss, images, by_class)
