"""Spikes of the loss, against curves that have none; too little memory. Bad steps: test_step.py. Disks:
test_checkpoints.py and tests/test_resuming.py."""

import math
import random
import re

import pytest
import torch
from training.step import Run

from config.recipe import BASE_RECIPE, load_recipe
from ffcv_ops.errors import UserError
from training import distributed, guards, micro


def spikes_in(losses):
    spikes = guards.Spikes()
    return [k for k, loss in enumerate(losses) if spikes.usual(loss) is not None]


def learning(seed, *, noise, count=400, start=7.0, end=2.5, tau=60):
    """A loss that falls as a run's does, with Gaussian noise of a share `noise`."""
    draw = random.Random(seed)
    return [(end + (start - end) * math.exp(-k / tau)) * (1 + draw.gauss(0, noise)) for k in range(count)]


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01, 0.03, 0.1])
def test_a_run_that_learns_has_no_spikes(noise):
    for seed in range(10):
        assert spikes_in(learning(seed, noise=noise)) == []
        assert spikes_in(learning(seed, noise=noise, end=0.004, start=0.05)) == [], "binary cross-entropy"


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01, 0.03])
@pytest.mark.parametrize("place", [10, 150, 399])
def test_a_spike_is_found_and_nothing_else(noise, place):
    losses = learning(1, noise=noise)
    losses[place] *= 2.5 if place == 10 else 1.6
    assert spikes_in(losses) == [place]


def test_a_run_that_stays_high_is_reported_until_it_is_the_usual():
    losses = [2.0] * 100 + [3.0] * 100
    found = spikes_in(losses)
    assert found == list(range(100, 111))
    spikes = guards.Spikes()
    assert [spikes.usual(loss) for loss in losses[:101]][-1] == 2.0


@pytest.mark.parametrize("share, piece, words", [
    (64, 32, "for 32 samples at once (speed.micro_batch); try --speed.micro_batch=16,"),
    (48, 48, "for 48 samples at once (speed.micro_batch); try --speed.micro_batch=24,"),
    (64, 2, "for 2 samples at once (speed.micro_batch); use a smaller model or --speed.parallel=fsdp,"),
])  # fmt: skip
def test_too_little_memory_names_a_micro_batch_that_is_possible(share, piece, words):
    recipe = load_recipe(BASE_RECIPE, {"stage.batch": str(2 * share), "stage.mix_chunk": str(share)})
    run = Run(recipe, distributed.Ranks(0, 0, 2, torch.device("cpu")), {}, torch.float32)
    with pytest.raises(UserError) as caught, guards.explained_memory(run, recipe.stages[0], piece):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
    said = str(caught.value)
    assert f"stage train: cpu has too little memory {words}" in said
    assert "\n" not in said
    with pytest.raises(RuntimeError, match="another"), guards.explained_memory(run, recipe.stages[0], piece):
        raise RuntimeError("another")


@pytest.mark.parametrize("share, batch, piece, words", [
    (64, 64, 32, "64 images at once; try --speed.micro_batch=32, the same command then goes on"),
    (48, 64, 6, "64 images at once; try --speed.micro_batch=6, the same command then goes on"),
    (48, 64, None, "64 images at once; try --speed.micro_batch=24"),
    (64, 2, None, "2 images at once; use a smaller model"),
])  # fmt: skip
def test_so_does_an_evaluation(share, batch, piece, words):
    """And with the number that it names, an evaluation takes no more than that at once."""
    recipe = load_recipe(BASE_RECIPE, {"stage.batch": str(2 * share), "stage.mix_chunk": str(share)})
    run = Run(recipe, distributed.Ranks(0, 0, 2, torch.device("cpu")), {}, torch.float32)
    with pytest.raises(UserError) as caught, guards.explained_evaluation(run, recipe.stages[0], batch, piece=piece):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
    said = str(caught.value)
    assert f"stage train: cpu has too little memory to evaluate {words}" in said
    assert "\n" not in said
    assert ("checkpoint" in said) == (piece is not None)
    if found := re.search(r"micro_batch=(\d+)", said):
        assert micro.in_evaluation(int(found[1]), int(found[1])) == int(found[1]) < batch
        assert micro.in_evaluation(int(found[1])) == int(found[1])
    with pytest.raises(RuntimeError, match="another"), guards.explained_evaluation(run, recipe.stages[0], batch):
        raise RuntimeError("another")
