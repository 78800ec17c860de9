"""Contenders that train."""

import copy

import pytest
import torch
from training.step import random_batch

from bench.step.clock import PHASES, Clock
from bench.step.contenders import contender
from bench.step.tasks import QUICK

CPU = torch.device("cpu")
TINY = QUICK._replace(batch=16, drop_path=0.45)


@pytest.mark.parametrize("name", ["ours", "exact", "reference", "timm-eager"])
def test_each_contender_trains_and_marks_its_phases(name, monkeypatch):
    """Weights and averages move, the loss of a batch shown again and again falls; each phase is marked once a step."""
    if name == "timm-eager":
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
        name = "timm-compiled"
    torch.manual_seed(0)
    clock = Clock(CPU)
    made = contender(name, TINY, compiles=False, device=CPU, mark=clock)
    network = made.state.model if hasattr(made, "state") else getattr(made, "network", made.model)
    averages = made.state.average if hasattr(made, "state") else made.average.module
    images, labels = random_batch(made.job, made.job.recipe.stages[0], 16)
    before = [copy.deepcopy(kept.state_dict()) for kept in (network, averages)]
    for _ in range(3):
        clock("start")
        made(*made.prepare(images, labels))
    steps = clock.phases()
    assert [set(one) for one in steps] == [{*PHASES, "step"}] * 3
    assert all(one["step"] == pytest.approx(sum(one[phase] for phase in PHASES)) for one in steps)
    for kept, start in zip((network, averages), before, strict=True):
        moved = [key for key, value in kept.state_dict().items() if not torch.equal(value, start[key])]
        assert len(moved) > 0.9 * len(start)


def test_the_reference_masks_and_does_not_fuse():
    made = contender("reference", TINY, compiles=False, device=CPU, mark=lambda phase: None)
    assert not any(block.attn.fused_attn for block in made.model.blocks)
    assert {block.drop_path2.drop_prob for block in made.model.blocks} == {0.45}
    assert made.optimizer.defaults["foreach"] is False
