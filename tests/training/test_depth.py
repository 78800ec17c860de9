"""Stochastic depth: rate, scale and keys of the masks; the split of a batch changes nothing."""

import pytest
import torch
from timm.layers import DropPath

from training import depth, model

CPU = torch.device("cpu")


def masks(rate=0.3, step=5, first=0, samples=4096, branches=3, seed=1):
    stochastic = [depth.StochasticDepth(r) for r in (rate if isinstance(rate, list) else [rate] * branches)]
    depth.set_masks(stochastic, seed=seed, step=step, first=first, samples=samples, device=CPU)
    return torch.stack([branch.scale for branch in stochastic])


@pytest.mark.parametrize("rate", [0.05, 0.45])
def test_rate_and_scale(rate):
    scale = masks(rate)
    assert sorted(scale.unique().tolist()) == pytest.approx([0.0, 1 / (1 - rate)])
    assert (scale == 0).float().mean().item() == pytest.approx(rate, abs=0.02)


def test_each_branch_has_its_own_rate():
    dropped = (masks([0.02, 0.3, 0.6]) == 0).float().mean(1)
    assert dropped.tolist() == pytest.approx([0.02, 0.3, 0.6], abs=0.02)
    assert torch.equal(masks([0.3, 0.3, 0.9])[:2], masks(0.3)[:2])


def test_every_sample_and_branch_draws_alone():
    kept = (masks(0.5) > 0).float()
    for one in range(3):
        assert abs(torch.corrcoef(torch.stack([kept[one], kept[(one + 1) % 3]]))[0, 1].item()) < 0.05
    assert abs(torch.corrcoef(torch.stack([kept[0, 1:], kept[0, :-1]]))[0, 1].item()) < 0.05


def test_masks_follow_seed_step_and_place_alone():
    whole = masks(samples=64)
    assert torch.equal(whole, torch.cat([masks(first=k, samples=16) for k in range(0, 64, 16)], dim=1))
    assert not torch.equal(whole, masks(samples=64, step=6))
    assert not torch.equal(whole, masks(samples=64, seed=2))


def test_forward_has_the_mean_and_variance_of_timms_drop_path():
    x = torch.full((20000, 1, 1), 3.0)
    ours, theirs = depth.StochasticDepth(0.2).train(), DropPath(0.2).train()
    depth.set_masks([ours], seed=0, step=0, first=0, samples=20000, device=CPU)
    torch.manual_seed(0)
    for statistic in (torch.mean, torch.std):
        assert statistic(ours(x)).item() == pytest.approx(statistic(theirs(x)).item(), rel=0.03)
    assert torch.equal(ours.eval()(x), x)


def test_every_block_of_a_model_has_two_branches_of_the_same_rate():
    network = model.create("deit3_micro_patch16_224", resolution=32, classes=3, drop_path=0.4, layer_scale=1e-4)
    stochastic = depth.branches(network)
    assert len(stochastic) == 2 * len(network.blocks)
    assert {branch.rate for branch in stochastic} == {0.4}
    assert depth.branches(model.create("deit3_micro_patch16_224", resolution=32, classes=3, drop_path=0.0,
                                       layer_scale=1e-4)) == []  # fmt: skip
