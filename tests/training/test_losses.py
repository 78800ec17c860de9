"""References: timm's losses, and sums by hand."""

import math
from types import SimpleNamespace

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


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.95])  # targets are .1, .9 and 1: above, not from it on
def test_binary_cross_entropy_is_timms(logits, targets, threshold):
    expected = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)(logits, targets)
    assert torch.allclose(losses.binary_cross_entropy(logits, targets, threshold), expected, rtol=1e-6)


def test_binary_cross_entropy_by_hand(logits, targets):
    total = 0.0
    for sample in range(6):
        for kind in range(11):
            probability = 1 / (1 + math.exp(-float(logits[sample, kind])))
            total -= math.log(probability if targets[sample, kind] > 0 else 1 - probability)
    assert float(losses.binary_cross_entropy(logits, targets, 0.0)) == pytest.approx(total / 66, rel=1e-5)


def test_binary_cross_entropy_of_shares_by_hand(logits, targets):
    yes, targets = torch.sigmoid(logits.double()), targets.double() * 0.9 + 0.1 / 11
    expected = -(targets * yes.log() + (1 - targets) * (1 - yes).log()).mean()
    assert float(losses.binary_cross_entropy(logits, targets, None)) == pytest.approx(float(expected), rel=1e-6)


def test_any_share_of_the_mix_is_a_full_positive(logits, targets):
    whole, part = (losses.binary_cross_entropy(logits, given, 0.0) for given in (targets, targets / 50))
    assert torch.equal(whole, part)


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
    low, config = logits.bfloat16(), SimpleNamespace(loss=name, bce_threshold=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.loss_of(config, low, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, losses.loss_of(config, low.float(), targets))


def test_a_stage_has_the_loss_of_its_recipe(logits, targets):
    found = [
        losses.loss_of(SimpleNamespace(loss=name, bce_threshold=threshold), logits, targets)
        for name, threshold in (("ce", 0.2), ("bce", 0.2), ("bce", 0.0))
    ]
    assert torch.equal(found[0], losses.soft_cross_entropy(logits, targets))
    assert torch.equal(found[1], losses.binary_cross_entropy(logits, targets, 0.2))
    assert not torch.equal(found[1], found[2])
