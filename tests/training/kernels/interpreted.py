"""Run by test_kernels.py in a process with TRITON_INTERPRET=1, where kernels are Python on tensors of the CPU."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.training.test_optim import LAMB, give_gradients, lamb_by_hand, update
from training import kernels, optim
from training.kernels import lamb


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(kernels, "usable", lambda device: True)


class Odd(nn.Module):
    """Tensors of odd sizes and orders of memory, of more than one chunk, of none; with a buffer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 3)
        self.wide = nn.Linear(97, 89, bias=False)
        self.stem = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.zero = nn.Parameter(torch.zeros(4, 4))
        self.register_buffer("mean", torch.zeros(2))


@pytest.mark.parametrize(("clip_norm", "decay"), [(1.0, 0.05), (None, 0.0)])
def test_lamb_is_the_formula_and_bad_steps_leave_no_trace(clip_norm, decay):
    """Against float64. Step 1 is not finite, step 3 is left out by hand."""
    torch.manual_seed(0)
    network = Odd()
    following = copy.deepcopy(network).requires_grad_(False)
    average = optim.Average(following, network, 0.9)
    optimizer = optim.Lamb(optim.parameter_groups(network, decay), clip_norm=clip_norm, **LAMB)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    decays = [decay if id(p) in decayed else 0.0 for p in network.parameters()]
    start, gradients = [p.detach().numpy().copy() for p in network.parameters()], []
    averages = [value.astype("float64") for value in start]
    for step in range(6):
        give_gradients(network, step, size=5.0 if step % 2 else 0.3)
        for p in network.parameters():
            p.grad = torch.empty_like(p).copy_(p.grad)  # in the order of memory that autograd gives
        if step == 1:
            next(iter(network.parameters())).grad.view(-1)[0] = float("inf")
        if step not in (1, 3):
            gradients.append([p.grad.numpy().copy() for p in network.parameters()])
        halted = torch.tensor(1.0) if step == 3 else None
        update(optimizer, clip_norm=clip_norm, halted=halted, average=average)
        expected = lamb_by_hand(start, gradients, decays, clip_norm=clip_norm, **LAMB)
        if step not in (1, 3):
            averages = [a + 0.1 * (p - a) for a, p in zip(averages, expected, strict=True)]
    for p, a, value, mean in zip(network.parameters(), following.parameters(), expected, averages, strict=True):
        assert abs(p.detach().numpy() - value).max() < 1e-6
        assert abs(a.numpy() - mean).max() < 1e-6
        assert abs(value - start[[id(q) for q in network.parameters()].index(id(p))]).max() > 1e-5
    assert {state["step"].item() for state in optimizer.state.values()} == {float(len(gradients))}


def test_lamb_repeats_its_bits_and_reads_states_of_the_other_path(monkeypatch):
    """Moments and counters are those of torch's fused Adam: a run goes on with either."""
    ends = []
    for paths in ("kk", "kk", "tk"):
        torch.manual_seed(0)
        network = Odd()
        optimizer = optim.Lamb(optim.parameter_groups(network, 0.05), **LAMB)
        for step, path in enumerate(paths):
            monkeypatch.setattr(kernels, "usable", lambda device, path=path: path == "k")
            give_gradients(network, step, size=5.0)
            update(optimizer, clip_norm=1.0)
        ends.append([p.detach().clone() for p in network.parameters()])
    for one, two, other in zip(*ends, strict=True):
        assert torch.equal(one, two)
        assert torch.allclose(one, other, atol=1e-6, rtol=0)


def test_sharded_tensors_take_the_same_step(tmp_path):
    """By one process, which has all parts: its sums go through the group."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh, ends = init_device_mesh("cpu", (1,)), []
        for shard in (lambda tensor: tensor, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])):
            torch.manual_seed(0)
            network = nn.Linear(97, 89)
            give_gradients(network, 0, size=5.0)
            for name, p in [*network.named_parameters()]:
                setattr(network, name, nn.Parameter(shard(p.detach())))
                getattr(network, name).grad = shard(p.grad)
            average = optim.Average(copy.deepcopy(network).requires_grad_(False), network, 0.9)
            optimizer = optim.Lamb(optim.parameter_groups(network, 0.05), **LAMB)
            update(optimizer, clip_norm=1.0, average=average)
            ends.append(optim.local([*network.parameters(), *average.copy.parameters()]))
    finally:
        distributed.destroy_process_group()
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    assert not torch.equal(ends[0][0], ends[0][2])


def test_lengths_adds_up_more_chunks_than_it_reads_at_once():
    """2,500 of the second of three tensors; the first has none."""
    sums = torch.rand(2507, 2)
    squares, counters = torch.full((3, 2), -1.0), [torch.full((), 4.0) for _ in range(3)]
    table = torch.tensor([[0, 0, 0, 0, counter.data_ptr(), *[0] * 7] for counter in counters])
    shapes = torch.tensor([[0, 0], [0, 0], [0, 2500], [0, 2507]])
    lamb.lamb_lengths[(3,)](table, shapes, sums, squares, torch.zeros(()))
    expected = [sums[a:b].double().sum(0) for a, b in ((0, 0), (0, 2500), (2500, 2507))]
    assert torch.allclose(squares.double(), torch.stack(expected), rtol=1e-6, atol=0)
    assert counters == [5.0] * 3


def test_what_the_kernels_do_not_know_takes_the_other_path():
    network = nn.Linear(4, 4).double()
    optimizer = optim.Lamb(network.parameters(), **LAMB)
    assert not optimizer.step()  # no gradients
    network.weight.grad = torch.ones(4, 4, dtype=torch.float64)
    assert not optimizer._fits_kernels()
    network.float().weight.grad = torch.ones(4, 4).t()
    assert not optimizer._fits_kernels()
    network.weight.grad = torch.ones(4, 4)
    assert optimizer._fits_kernels()
