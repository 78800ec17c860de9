"""References: timm's losses, and sums by hand."""

import math

import pytest
import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from training import losses


@pytest.fixture
def logits():
    return 3 * torch.randn(6, 11, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets():
    """A tenth of one class and nine tenths of another; the last two samples have one class alone."""
    mixed = torch.zeros(6, 11)
    for sample in range(6):
        mixed[sample, sample] += 0.1
        mixed[sample, sample + 1 if sample < 4 else sample] += 0.9
    return mixed


def test_binary_cross_entropy_is_timms(logits, targets):
    expected = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)(logits, targets)
    assert torch.allclose(losses.binary_cross_entropy(logits, targets), expected, rtol=1e-6)


def test_binary_cross_entropy_by_hand(logits, targets):
    total = 0.0
    for sample in range(6):
        for kind in range(11):
            probability = 1 / (1 + math.exp(-float(logits[sample, kind])))
            total -= math.log(probability if targets[sample, kind] > 0 else 1 - probability)
    assert float(losses.binary_cross_entropy(logits, targets)) == pytest.approx(total / 66, rel=1e-5)


def test_any_share_of_the_mix_is_a_full_positive(logits, targets):
    assert torch.equal(losses.binary_cross_entropy(logits, targets), losses.binary_cross_entropy(logits, targets / 50))


def test_soft_cross_entropy_is_timms(logits, targets):
    expected = SoftTargetCrossEntropy()(logits, targets)
    assert torch.allclose(losses.soft_cross_entropy(logits, targets), expected, rtol=1e-6)


def test_soft_cross_entropy_by_hand(logits, targets):
    total = 0.0
    for sample in range(6):
        partition = math.log(sum(math.exp(float(x)) for x in logits[sample]))
        total += sum(float(t) * (partition - float(x)) for t, x in zip(targets[sample], logits[sample], strict=True))
    assert float(losses.soft_cross_entropy(logits, targets)) == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("name", ["bce", "ce"])
def test_float32_inside_autocast(name, logits, targets):
    low = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.LOSSES[name](low, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, losses.LOSSES[name](low.float(), targets))
