"""Logits and soft targets, both (n, classes), -> a scalar loss. Computed in float32, inside autocast too."""

from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Each class is a yes-or-no question and every target above 0 a full yes, however small its share of the mix.
    Mean over samples and classes. Targets must not be smoothed: that would make every class a yes."""
    return F.binary_cross_entropy_with_logits(logits.float(), (targets > 0).float())


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution over the classes, mean over samples."""
    return F.cross_entropy(logits.float(), targets.float())


LOSSES = {"bce": binary_cross_entropy, "ce": soft_cross_entropy}  # the words of `stage.loss`
