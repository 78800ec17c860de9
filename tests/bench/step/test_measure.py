"""Who cannot take part is left out; what there is to compute is counted and timed."""

from types import SimpleNamespace

import pytest
import torch

from bench.step import measure
from bench.step.baselines import QUICK
from training.network import model
from training.planning import cost

CPU = torch.device("cpu")
TINY = QUICK._replace(batch=4)
PART = QUICK._replace(batch=16, drop_path=0.45)


def measured(monkeypatch, fails):
    """Rows of stand-ins for ours and the reference, of which those in `fails` run out of memory in their first step."""

    class Stand:
        def __init__(self, who, task, *, mark, **_):
            self.who, self.mark = who, mark

        def prepare(self, *batch):
            return batch

        def __call__(self, images, labels):
            if self.who in fails:
                raise torch.OutOfMemoryError("no more")
            self.mark("data")

    monkeypatch.setattr(measure, "step_of", Stand)
    options = SimpleNamespace(only=["ours", "reference"], compile=False, memory=False, repeats=2, steps=1)
    return measure.measure_task("tiny", TINY, options, CPU)


def test_one_that_runs_out_of_memory_takes_no_step(monkeypatch, capsys):
    rows = measured(monkeypatch, {"reference"})
    assert {row["name"] for row in rows} == {"ours", "matmul"}
    assert "tiny: reference is left out: no more" in capsys.readouterr().err


def test_nobody_is_left(monkeypatch):
    assert measured(monkeypatch, {"ours", "reference"}) == []


def test_a_gpus_memory_is_that_with_the_weights(monkeypatch):
    """What is allocated before the first step is not theirs, but for the weights and their average."""
    network = torch.nn.Linear(10, 10)
    calls = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7000)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)

    class Step(SimpleNamespace):
        def __call__(self, *batch):
            calls.append(batch)

    step = Step(network=network, average=network)
    assert measure.warm_up(step, (1, 2), torch.device("cuda")) == 2000 + 2 * 4 * 110
    assert calls == [(1, 2)] * 2


def test_multiply_adds_leave_out_what_a_subset_leaves_out():
    """9 of 16 samples go through the blocks: against torch's counter on the two parts."""
    whole, part = (measure.macs(PART, subset=subset) for subset in (False, True))
    network = model.create(PART.model, resolution=PART.resolution, classes=1000, drop_path=0.0, layer_scale=1e-4)
    assert whole == pytest.approx(cost.gmacs(network, PART.resolution))
    outside = (9 * 16 * 16 * 3 * 128 + 1000 * 128) / 1e9  # patch embedding and head
    assert part == pytest.approx(outside + (whole - outside) * 9 / 16, rel=1e-6)


def test_a_matrix_product_is_timed():
    product = measure.Matmul(CPU, torch.float32)
    product.one = product.other = torch.ones(64, 64)
    product.size = 64
    assert 0 < product() < 1e15
