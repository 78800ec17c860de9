"""Logits and soft targets, both (n, classes), -> a scalar loss. Computed in float32, inside autocast too."""

from torch import Tensor
from torch.nn import functional as F

from config.recipe import StageConfig


def binary_cross_entropy(logits: Tensor, targets: Tensor, threshold: float | None) -> Tensor:
    """Each class is a yes-or-no question and every target above `threshold` a full yes: with 0, however small its share
    of the mix, so that targets must not be smoothed; with None a target is the share of a yes. Mean over samples and
    classes."""
    yes = targets if threshold is None else targets > threshold
    return F.binary_cross_entropy_with_logits(logits.float(), yes.float())


def soft_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy against a distribution over the classes, mean over samples. `weight`: of each class."""
    return F.cross_entropy(logits.float(), targets.float(), weight=weight)


def loss_of(config: StageConfig, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """The stage's (`stage.loss`)."""
    if config.loss == "bce":
        return binary_cross_entropy(logits, targets, config.bce_threshold)
    return soft_cross_entropy(logits, targets, weight)
