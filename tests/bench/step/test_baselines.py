"""Those who train."""

import copy

import pytest
import torch

from bench.step import baselines
from bench.step.baselines import QUICK, pinned, run_of, step_of
from bench.step.measure import PHASES, Clock
from ffcv_ops import mixing
from training import distributed
from training.memory.micro_batch import random_batch

CPU = torch.device("cpu")
TINY = QUICK._replace(batch=16, drop_path=0.45)


@pytest.mark.parametrize("name", ["ours", "exact", "reference", "timm-compiled"])
def test_each_trains_and_marks_its_phases(name, monkeypatch):
    """Weights and averages move; each phase is marked once a step. timm's model is not compiled here."""
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    torch.manual_seed(0)
    clock = Clock(CPU)
    step = step_of(name, TINY, compiles=False, device=CPU, mark=clock)
    images, labels = random_batch(step.run, step.run.recipe.stages[0], 16)
    before = [copy.deepcopy(kept.state_dict()) for kept in (step.network, step.average)]
    for _ in range(3):
        clock("start")
        step(*step.prepare(images, labels))
    steps = clock.phases()
    assert [set(one) for one in steps] == [{*PHASES, "step"}] * 3
    assert all(one["step"] == pytest.approx(sum(one[phase] for phase in PHASES)) for one in steps)
    for kept, start in zip((step.network, step.average), before, strict=True):
        moved = [key for key, value in kept.state_dict().items() if not torch.equal(value, start[key])]
        assert len(moved) > 0.9 * len(start)


def test_the_reference_masks_and_does_not_fuse():
    made = step_of("reference", TINY, compiles=False, device=CPU, mark=lambda phase: None)
    assert not any(block.attn.fused_attn for block in made.network.blocks)
    assert {block.drop_path2.drop_prob for block in made.network.blocks} == {0.45}
    assert made.optimizer.defaults["foreach"] is False


@pytest.mark.parametrize("name", ["reference", "timm-compiled"])
def test_baselines_see_the_images_that_ours_sees(name, monkeypatch):
    """Normalised, by their loader or on the device."""
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    step = step_of(name, TINY, compiles=False, device=CPU, mark=lambda phase: None)
    seen = []
    step.mixup = lambda images, labels: seen.append(images) or (images, torch.zeros(16, 1000))
    images, labels = random_batch(step.run, step.run.recipe.stages[0], 16)
    step(*step.prepare(images, labels))
    torch.testing.assert_close(seen[0], mixing.normalize(images), rtol=1e-5, atol=1e-5)


def test_what_is_prepared_for_a_gpu_is_pinned_once(monkeypatch):
    """By everyone, and not again in the step; what is on the device already cannot be pinned."""
    monkeypatch.setattr(baselines, "pinned", lambda tensor, device: ("pinned", tensor.dtype))
    for name, dtype in (("ours", torch.uint8), ("reference", torch.float32), ("timm-compiled", torch.uint8)):
        step = step_of(name, TINY, compiles=False, device=CPU, mark=lambda phase: None)
        prepared = step.prepare(*random_batch(step.run, step.run.recipe.stages[0], 16))
        assert prepared == (("pinned", dtype), ("pinned", torch.int64))

    class OnTheGpu:
        device = torch.device("cuda", 0)

        def pin_memory(self):
            raise AssertionError("only dense CPU tensors can be pinned")

    on_the_gpu = OnTheGpu()
    assert pinned(on_the_gpu, torch.device("cuda", 0)) is on_the_gpu


def test_ranks_are_one():
    """The benchmark's run is that of one process, whatever the environment says."""
    run = run_of(QUICK, CPU, drop_path="subset")
    assert run.ranks == distributed.Ranks(0, 1, CPU)
    assert run.recipe.stages[0].batch == run.local_batch_size(run.recipe.stages[0]) == 16
