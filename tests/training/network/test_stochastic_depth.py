"""Stochastic depth: rate, scale and keys of the masks; the split of a batch changes nothing."""

import math

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from training.network import model, stochastic_depth
from training.network.stochastic_depth import DepthMasks, StochasticDepth

CPU = torch.device("cpu")


MODES = pytest.mark.parametrize("subset", [False, True], ids=["exact", "subset"])


def masks(rate=0.3, step=5, first=0, samples=4096, branches=3, seed=1, subset=False):
    stochastic = nn.ModuleList(StochasticDepth(r) for r in (rate if isinstance(rate, list) else [rate] * branches))
    DepthMasks(stochastic, subset=subset).set(seed, step, first, samples, CPU)
    return torch.stack([by_place(branch, samples) for branch in stochastic])


def by_place(branch, samples):
    """The factor of each sample, also of those that are not computed."""
    return branch.scale if branch.kept is None else torch.zeros(samples).index_add(0, branch.kept, branch.scale)


@MODES
@pytest.mark.parametrize("rate", [0.05, 0.45])
def test_rate_and_scale(rate, subset):
    scale = masks(rate, subset=subset)
    assert sorted(scale.unique().tolist()) == pytest.approx([0.0, 1 / (1 - rate)])
    assert (scale == 0).float().mean().item() == pytest.approx(rate, abs=0.02)


@MODES
def test_each_branch_has_its_own_rate(subset):
    dropped = (masks([0.02, 0.3, 0.6], subset=subset) == 0).float().mean(1)
    assert dropped.tolist() == pytest.approx([0.02, 0.3, 0.6], abs=0.02)
    assert torch.equal(masks([0.3, 0.3, 0.9], subset=subset)[:2], masks(0.3, subset=subset)[:2])


@MODES
def test_every_sample_and_branch_draws_alone(subset):
    """With `subset` two samples of a group of 16 have a correlation of -1/15."""
    kept = (masks(0.5, samples=16384, subset=subset) > 0).float()
    for one in range(3):
        assert abs(torch.corrcoef(torch.stack([kept[one], kept[(one + 1) % 3]]))[0, 1].item()) < 0.05
    assert abs(torch.corrcoef(torch.stack([kept[0, 1:], kept[0, :-1]]))[0, 1].item()) < (0.1 if subset else 0.05)


@MODES
@pytest.mark.parametrize("piece", [2, 8, 12, 16, 24, 48])
def test_masks_follow_seed_step_and_place_alone(subset, piece):
    whole = masks(samples=96, subset=subset)
    pieces = [masks(first=k, samples=piece, subset=subset) for k in range(0, 96, piece)]
    assert torch.equal(whole, torch.cat(pieces, dim=1))
    assert not torch.equal(whole, masks(samples=96, step=6, subset=subset))
    assert not torch.equal(whole, masks(samples=96, seed=2, subset=subset))


def test_forward_has_the_mean_and_variance_of_timms_drop_path():
    x = torch.full((20000, 1, 1), 3.0)
    ours, theirs = StochasticDepth(0.2).train(), DropPath(0.2).train()
    DepthMasks(ours, subset=False).set(0, 0, 0, 20000, CPU)
    torch.manual_seed(0)
    for statistic in (torch.mean, torch.std):
        assert statistic(ours(x)).item() == pytest.approx(statistic(theirs(x)).item(), rel=0.03)
    assert torch.equal(ours.eval()(x), x)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.45, 0.5, 0.6])
@pytest.mark.parametrize("piece", [16, 64, 256])
def test_a_subset_has_one_size_and_its_share(rate, piece):
    """Within one sample, in each piece of each step; of which at most one is computed for nothing."""
    for step in range(20):
        for first in (0, piece, 5 * piece):
            branches = nn.ModuleList(StochasticDepth(rate) for _ in range(3))
            DepthMasks(branches, subset=True).set(0, step, first, piece, CPU)
            for branch in branches:
                kept = int((by_place(branch, piece) > 0).sum())
                assert abs(kept - piece * (1 - rate)) < 1
                if branch.kept is not None:
                    assert len(branch.kept) == math.ceil(round(piece * (1 - rate), 6))
                    assert len(branch.kept.unique()) == len(branch.kept)


def vit(rate=0.4):
    torch.manual_seed(0)
    network = model.create("deit3_micro_patch16_224", resolution=32, classes=3, drop_path=rate, layer_scale=0.5)
    return network.double().train()


def test_a_subset_gives_the_residual_and_gradients_of_the_mask():
    """Against the formula x + mask * branch(x) over all samples, in float64."""
    block = vit().blocks[0]
    x = torch.randn(32, 5, 128, dtype=torch.float64, requires_grad=True)
    DepthMasks(block, subset=True).set(0, 0, 0, 32, CPU)
    one, two = (by_place(drop, 32).double().view(-1, 1, 1) for drop in stochastic_depth.branches(block))
    middle = x + one * block.ls1(block.attn(block.norm1(x)))
    expected = middle + two * block.ls2(block.mlp(block.norm2(middle)))
    seen = []
    block.attn.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    given = block(x)
    assert torch.allclose(given, expected, atol=1e-12, rtol=0)
    assert seen == [20]  # of 32 at rate .4: 19.2 rounded up
    weight = torch.randn_like(given)
    variables = [x, *block.parameters()]
    for ours, theirs in zip(torch.autograd.grad((given * weight).sum(), variables),
                            torch.autograd.grad((expected * weight).sum(), variables), strict=True):  # fmt: skip
        assert torch.allclose(ours, theirs, atol=1e-10, rtol=0)
        assert theirs.abs().max() > 1e-3


class Operations(TorchDispatchMode):
    """Names of all operations within, those of backward passes too."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation.overloadpacket.__name__)
        return operation(*args, **kwargs or {})


@pytest.mark.parametrize(("rate", "samples"), [(0.05, 64), (0.45, 32), (0.6, 24)])
def test_gathers_give_the_bits_of_index_add(rate, samples):
    """In float64, both ways, without an addition that needs atomics on a GPU."""
    drop = StochasticDepth(rate).train()
    DepthMasks(drop, subset=True).set(0, 3, 0, samples, CPU)
    x = torch.randn(samples, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)

    def branch(rows):
        return (rows @ weight).sin()

    expected = x.index_add(0, drop.kept, drop(branch(x[drop.kept])))
    direction = torch.randn_like(x)
    expected_grads = torch.autograd.grad((expected * direction).sum(), (x, weight))
    with Operations() as seen:
        given = stochastic_depth._add_branch(x, branch, drop)
        grads = torch.autograd.grad((given * direction).sum(), (x, weight))
    assert torch.equal(given, expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(grads, expected_grads, strict=True))
    assert "index" in seen.names
    assert not seen.names & {"index_add", "index_put", "_unsafe_index_put", "scatter_add"}


@MODES
@pytest.mark.parametrize("rate", [0.1, 0.45])
def test_mean_and_variance_of_the_residual(subset, rate):
    """Over steps: the mean is the branch's output f, the variance f^2 rate / (1 - rate), for each sample."""
    block = vit(rate).blocks[0]
    x = torch.randn(16, 2, 128, dtype=torch.float64)
    with torch.no_grad():
        branch = block.ls1(block.attn(block.norm1(x)))
        residuals = []
        for step in range(1500):
            DepthMasks(block, subset=subset).set(0, step, 16, 16, CPU)
            drop = block.drop_path1
            kept = slice(None) if drop.kept is None else drop.kept
            residuals.append(torch.zeros_like(x).index_add(0, torch.arange(16)[kept], drop(branch[kept])))
    residuals = torch.stack(residuals)
    ratio = rate / (1 - rate)
    assert torch.allclose(residuals.mean(0) / branch, torch.ones_like(x), atol=5 * (ratio / 1500) ** 0.5)
    assert torch.allclose(residuals.var(0) / (ratio * branch**2), torch.ones_like(x), rtol=0.3)
    assert residuals.var(0).sum() / (ratio * branch**2).sum() == pytest.approx(1, abs=0.05)


def test_rate_0_and_evaluation_compute_everything():
    network = vit(0.0)
    assert stochastic_depth.branches(network) == []
    assert stochastic_depth.has_subsets(network)
    network, x = vit(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    DepthMasks(network, subset=True).set(0, 0, 0, 4, CPU)
    assert torch.equal(network.eval()(x), network(x))
    assert network(x).std() > 0
    convolutional = model.create("resnet18", resolution=32, classes=3, drop_path=0.2, layer_scale=None)
    assert not stochastic_depth.has_subsets(convolutional)


def test_every_block_of_a_model_has_two_branches_of_the_same_rate():
    network = model.create("deit3_micro_patch16_224", resolution=32, classes=3, drop_path=0.4, layer_scale=1e-4)
    stochastic = stochastic_depth.branches(network)
    assert len(stochastic) == 2 * len(network.blocks)
    assert {branch.rate for branch in stochastic} == {0.4}
    assert stochastic_depth.branches(model.create("deit3_micro_patch16_224", resolution=32, classes=3, drop_path=0.0,
                                       layer_scale=1e-4)) == []  # fmt: skip


@MODES
def test_masks_stay_where_they_are_in_memory(subset):
    """CUDA graphs are recorded anew when an address changes; kernels may read 16 bytes at a time."""
    block, seen = vit(0.45).blocks[0], set()
    masks_of = DepthMasks(block, subset=subset)
    for step in range(3):
        masks_of.set(0, step, 0, 141, CPU)
        drops = stochastic_depth.branches(block)
        tensors = [tensor for drop in drops for tensor in (drop.scale, drop.kept, drop.place) if tensor is not None]
        assert len(tensors) == (6 if subset else 2)
        assert all(tensor.data_ptr() % 16 == 0 and tensor.is_contiguous() for tensor in tensors)
        seen.add(tuple((id(tensor), tensor.data_ptr(), tensor.shape) for tensor in tensors))
    assert len(seen) == 1
