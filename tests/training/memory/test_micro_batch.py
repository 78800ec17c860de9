"""The micro-batch, with devices that run out of memory when they are told to."""

import dataclasses
from pathlib import Path

import pytest
import torch

import train_imagenet
from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from training import datasets, distributed
from training.memory import micro_batch
from training.network import model
from training.planning import cost
from training.run import Run
from training.stage import create_stage

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("share", [1, 2, 7, 12, 256, 768])
def test_choices_divide_the_share(share, even):
    expected = [n for n in reversed(range(1, share + 1)) if (share / n).is_integer() and not (even and n % 2)]
    assert micro_batch.divisors(share, even=even) == expected


def network(name="deit3_micro_patch16_224"):
    torch.manual_seed(0)
    return model.create(name, resolution=32, classes=5, drop_path=0.0, layer_scale=1e-4)


def test_a_cpu_keeps_to_its_bound(monkeypatch):
    made, options = network(), micro_batch.divisors(96, even=True)
    _, each = cost.activation_bytes(made, 32, torch.float32)
    for fitting, expected in ((1000, 96), (50, 48), (47, 32), (5, 4), (1, 2)):
        monkeypatch.setattr(micro_batch, "CPU_BYTES", fitting * each)
        assert micro_batch.from_memory_bound(made, 32, torch.float32, options) == expected
    monkeypatch.setattr(micro_batch, "CPU_BYTES", 1 << 60)
    assert micro_batch.from_memory_bound(made, 32, torch.float32, micro_batch.divisors(2048, even=True)) == 256
    assert micro_batch.from_memory_bound(made, 32, torch.float32, micro_batch.divisors(2 * 509, even=True)) == 2


@pytest.mark.parametrize(("limit", "tried"), [(100, [96]), (40, [96, 48, 24]), (3, [96, 48, 24, 12, 6, 2]), (2, None)])
def test_a_trial_finds_what_fits_and_leaves_no_trace(limit, tried):
    made, asked = network("resnet18").train(), []

    def attempt(samples):
        asked.append(samples)
        made(torch.randn(samples, 3, 32, 32)).sum().backward()
        assert made.fc.bias.grad is not None
        if samples > limit:
            raise torch.OutOfMemoryError("out of memory")

    before = {key: value.clone() for key, value in made.state_dict().items()}
    random = torch.get_rng_state()
    fits = micro_batch.from_oom_search(made, attempt, micro_batch.divisors(96, even=True), reserved=1000)
    assert fits == asked[-1] <= limit
    assert tried is None or asked == tried
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_that_never_fits_is_said_in_one_line():
    def attempt(samples):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(UserError, match="not even 2 samples"):
        micro_batch.from_oom_search(network(), attempt, micro_batch.divisors(8, even=True), reserved=0)
    with pytest.raises(ValueError, match="another"):
        micro_batch.from_oom_search(network(), lambda samples: int("another"), [8], reserved=0)


class FakeGPU:
    type = "cuda"


def test_a_trial_is_a_pass_of_the_real_step(monkeypatch):
    """From the recipe to the trial, on a CPU that is taken for a GPU with room for 20 samples."""
    recipe = load_recipe(ROOT / "recipes/smoke.yaml", {"stage.resolution": "32", "stage.drop_path": "0.2"})
    ranks = distributed.Ranks(0, 1, torch.device("cpu"))
    run = Run(recipe, ranks, {"main": datasets.DataSet(None, None, 5)}, torch.float32)
    stage = create_stage(run, 0)
    assert micro_batch.find(run, stage, train_imagenet.forward_backward) == 64

    sizes, reserves, search = [], [], micro_batch.from_oom_search
    random_batch = micro_batch.random_batch

    def crowded(_, stage, images, labels):
        sizes.append(stage.micro_batch_size)
        assert train_imagenet.forward_backward(run, stage, images, labels) > 0
        if stage.micro_batch_size > 20:
            raise torch.OutOfMemoryError("out of memory")

    def noting(*given, reserved):
        reserves.append(reserved)
        return search(*given, reserved=reserved)

    monkeypatch.setattr(micro_batch, "random_batch", lambda _, *given: random_batch(run, *given))
    monkeypatch.setattr(micro_batch, "from_oom_search", noting)
    on_gpu = dataclasses.replace(run, ranks=ranks._replace(device=FakeGPU()))
    assert micro_batch.find(on_gpu, stage, crowded) == 16
    assert sizes == [64, 32, 16]
    moments_and_update = 4 * cost.num_parameters(stage.model) * 3
    assert reserves == [moments_and_update + 5 * 64 * 3 * 32 * 32]  # and the five batches of uint8 images FFCV holds


WORKER = """
import sys
sys.path.insert(0, {root!r})
import torch
from training import distributed
from training.memory import micro_batch
ranks = distributed.init_process_group("cpu")
def attempt(samples):
    if samples > (64 if ranks.is_main else 17):
        raise torch.OutOfMemoryError("out of memory")
found = micro_batch.from_oom_search(torch.nn.Linear(2, 2), attempt, micro_batch.divisors(64, even=True), reserved=0)
print("found", found)
distributed.destroy_process_group()
"""


@pytest.mark.timeout(120)
def test_all_ranks_take_what_the_smallest_can(tmp_path, run_python):
    (tmp_path / "worker.py").write_text(WORKER.format(root=str(ROOT)))
    done = run_python([tmp_path / "worker.py"], ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("found 16") == 2


def test_evaluation_takes_64_or_what_fits_in_training_but_no_more_than_is_said():
    assert [micro_batch.for_evaluation("auto", piece) for piece in (2, 64, 300)] == [64, 64, 300]
    assert [micro_batch.for_evaluation(piece, piece) for piece in (2, 64, 300)] == [2, 64, 300]
    assert [micro_batch.for_evaluation(word) for word in ("auto", 16, 300)] == [64, 16, 64]
