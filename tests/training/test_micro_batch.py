"""The micro-batch, with devices that run out of memory when they are told to."""

from pathlib import Path

import pytest
import torch
from training.step import Run, gradients, random_batch

from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from training import datasets, distributed, micro, model, optim
from training.run_folder import State

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("share", [1, 2, 7, 12, 256, 768])
def test_choices_divide_the_share(share, even):
    expected = [n for n in reversed(range(1, share + 1)) if (share / n).is_integer() and not (even and n % 2)]
    assert micro.choices(share, even=even) == expected


def network(name="deit3_micro_patch16_224"):
    torch.manual_seed(0)
    return model.create(name, resolution=32, classes=5, drop_path=0.0, layer_scale=1e-4)


def test_a_cpu_keeps_to_its_bound(monkeypatch):
    made, options = network(), micro.choices(96, even=True)
    _, each = model.activations(made, 32, torch.float32)
    for fitting, expected in ((1000, 96), (50, 48), (47, 32), (5, 4), (1, 2)):
        monkeypatch.setattr(micro, "CPU_BYTES", fitting * each)
        assert micro.by_bound(made, 32, torch.float32, options) == expected
    monkeypatch.setattr(micro, "CPU_BYTES", 1 << 60)
    assert micro.by_bound(made, 32, torch.float32, micro.choices(2048, even=True)) == 256
    assert micro.by_bound(made, 32, torch.float32, micro.choices(2 * 509, even=True)) == 2


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
    fits = micro.by_trial(made, attempt, micro.choices(96, even=True), reserved=1000)
    assert fits == asked[-1] <= limit
    assert tried is None or asked == tried
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_that_never_fits_is_said_in_one_line():
    def attempt(samples):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(UserError, match="not even 2 samples"):
        micro.by_trial(network(), attempt, micro.choices(8, even=True), reserved=0)
    with pytest.raises(ValueError, match="another"):
        micro.by_trial(network(), lambda samples: int("another"), [8], reserved=0)


class FakeGPU:
    type = "cuda"


def test_a_trial_is_a_pass_of_the_real_step(monkeypatch):
    """From the recipe to the trial, on a CPU that is taken for a GPU with room for 20 samples."""
    recipe = load_recipe(ROOT / "recipes/smoke.yaml", {"stage.resolution": "32", "stage.drop_path": "0.2"})
    stage, ranks = recipe.stages[0], distributed.Ranks(0, 0, 1, torch.device("cpu"))
    run = Run(recipe, ranks, {"main": datasets.DataSet(None, None, 5)}, torch.float32)
    made = model.create("deit3_micro_patch16_224", resolution=32, classes=5, drop_path=0.2, layer_scale=1e-4)
    state = State(0, 0, 0, made, None, optim.build(made, stage), torch.amp.GradScaler("cpu", enabled=False))
    assert micro.find(run, state, stage) == 64

    pieces, reserves, by_trial = [], [], micro.by_trial

    def crowded(_, *given, piece, **named):
        pieces.append(piece)
        assert gradients(run, *given, piece=piece, **named) > 0
        if piece > 20:
            raise torch.OutOfMemoryError("out of memory")

    def noting(*given, reserved):
        reserves.append(reserved)
        return by_trial(*given, reserved=reserved)

    monkeypatch.setattr(micro, "gradients", crowded)
    monkeypatch.setattr(micro, "random_batch", lambda _, *given: random_batch(run, *given))
    monkeypatch.setattr(micro, "by_trial", noting)
    assert micro.find(run._replace(ranks=ranks._replace(device=FakeGPU())), state, stage) == 16
    assert pieces == [64, 32, 16]
    moments_and_update = 4 * model.count(made) * 3
    assert reserves == [moments_and_update + 4 * 64 * 3 * 32 * 32]  # and four batches of uint8 images


WORKER = """
import sys
sys.path.insert(0, {root!r})
import torch
from training import distributed, micro
ranks = distributed.init_process_group("cpu")
def attempt(samples):
    if samples > (64 if ranks.is_main else 17):
        raise torch.OutOfMemoryError("out of memory")
found = micro.by_trial(torch.nn.Linear(2, 2), attempt, micro.choices(64, even=True), reserved=0)
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
    assert [micro.in_evaluation("auto", piece) for piece in (2, 64, 300)] == [64, 64, 300]
    assert [micro.in_evaluation(piece, piece) for piece in (2, 64, 300)] == [2, 64, 300]
    assert [micro.in_evaluation(word) for word in ("auto", 16, 300)] == [64, 16, 64]
