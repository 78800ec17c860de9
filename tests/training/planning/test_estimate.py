"""The table of a plan. References: the official numbers of steps, sizes and rates; the loader's own length."""

import time
from pathlib import Path

import pytest
import torch

from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from training import datasets, optim
from training.loading import train_loader
from training.planning import estimate
from training.planning.model_costs import model_costs
from training.planning.throughput import throughput

ROOT = Path(__file__).resolve().parents[3]


def plan(name, overrides=None, **options):
    """(rows of the table as {column: cell}, the lines below it)."""
    run = load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides)
    text = estimate.describe(run, datasets.planned_sets(run), **options)
    assert all(line.startswith("#") and line == line.rstrip() for line in text.splitlines())
    lines = text.splitlines()
    blank = lines.index("#")
    heads = ["stage", "px", "tokens", "M param.", "GMACs", "steps", "samples", "lr start", "lr peak", "lr end",
             "at once", "GiB", "GPU-hours"]  # fmt: skip
    assert lines[0].replace(" ", "") == "#" + "".join(heads).replace(" ", "")
    rows = [dict(zip(heads, line[1:].split(), strict=True)) for line in lines[1:blank]]
    return rows, "\n".join(lines[blank + 1 :])


def test_vit_s_of_the_official_commands():
    (pretrain, finetune), notes = plan("vit_s_800ep", images_per_s=[1000.0])
    size = {"px": "224", "tokens": "196", "M param.": "22.059", "GMACs": "4.60"}
    assert pretrain.items() >= (size | {"steps": "500000", "samples": "1,024,000,000", "at once": "256"}).items()
    assert pretrain.items() >= {"lr start": "1.00e-06", "lr peak": "4.00e-03", "lr end": "1.01e-05"}.items()
    size = {"px": "384", "tokens": "576", "M param.": "22.205", "GMACs": "15.49"}
    assert finetune.items() >= (size | {"steps": "50040", "samples": "25,620,480", "at once": "64"}).items()
    assert finetune.items() >= {"lr start": "1.00e-06", "lr peak": "1.00e-05", "lr end": "1.00e-05"}.items()
    assert float(pretrain["GPU-hours"]) == pytest.approx(1.024e9 / 1000 / 3600, abs=0.06)
    assert float(finetune["GPU-hours"]) == pytest.approx(25_620_480 / (1000 * 4.60 / 15.49) / 3600, abs=0.06)
    assert "data/imagenet_train.beton is not here: taken to hold 1,281,167 images in 1,000 classes" in notes
    assert "at 1000 training images/s" in notes


def test_a_head_for_the_classes_of_each_data_set():
    rows, notes = plan("in21k_h_90ep")
    assert [row["tokens"] for row in rows] == ["81", "256"]
    assert float(rows[1]["M param."]) == pytest.approx(632.126, abs=1e-3)
    assert float(rows[0]["M param."]) == pytest.approx(631.902 + 18.167 * 1.281, abs=1e-3)
    assert rows[0]["steps"] == str(13_151_276 // 2048 * 90)
    assert [row["GPU-hours"] for row in rows] == ["-", "-"]
    assert "imagenet21k_train.beton is not here" in notes
    assert "imagenet_train.beton is not here" in notes


def test_measured_speeds_are_taken_as_they_are():
    rows, _ = plan("smoke", images_per_s=[0.01, 0.02])
    samples = [int(row["samples"].replace(",", "")) for row in rows]
    assert [float(row["GPU-hours"]) for row in rows] == pytest.approx([samples[0] / 36, samples[1] / 72], rel=0.01)


@pytest.mark.parametrize("changes", [{"repeats": "3"}, {"repeats": "1"}, {"batch": "32", "mix_chunk": "4"}])
def test_steps_are_the_loaders(changes, jpg_beton):
    overrides = {"data.train": str(jpg_beton), "data.val": str(jpg_beton), "stage.batch": "16", "stage.mix_chunk": "8"}
    run = load_recipe(ROOT / "recipes/smoke.yaml", overrides | {f"stage.{key}": text for key, text in changes.items()})
    steps, _ = estimate.stage_length(run.stages[0], datasets.open_sets(run))
    assert steps == len(train_loader(jpg_beton, 96, run.stages[0], seed=0))


def test_a_batch_that_is_never_full_is_refused(jpg_beton):
    run = load_recipe(ROOT / "recipes/smoke.yaml", {"data.train": str(jpg_beton), "stage.batch": "128"})
    with pytest.raises(UserError, match="96 images do not fill one batch of 128"):
        estimate.stage_length(run.stages[0], datasets.planned_sets(run))


@pytest.mark.parametrize(
    ("optimizer", "ema", "tensors"), [("lamb", "0.9", 5), ("adamw", "0.9", 5), ("adamw", "none", 4), ("sgd", "none", 3)]
)
def test_memory_is_tensors_of_the_weights_size_and_activations(optimizer, ema, tensors):
    """Weights, gradients, moments, average; at 32 px LAMB's update is larger than the activations of 2 samples."""
    overrides = {"stage.optimizer": optimizer, "stage.ema": ema, "stage.clip_norm": "none", "stage.start": "last"}
    run = load_recipe(ROOT / "recipes/smoke.yaml", overrides)
    costs = model_costs(run.model, 32, 10, drop_path=0.0)
    weights, (_, each) = 4 * costs.parameters, costs.saved_fp32
    assert estimate.peak_memory(run, run.stages[0], costs, 500) == tensors * weights + 500 * each
    update = weights if optimizer == "lamb" else 2 * each
    assert estimate.peak_memory(run, run.stages[0], costs, 2) == tensors * weights + update
    half = load_recipe(ROOT / "recipes/smoke.yaml", {"speed.precision": "bf16", "stage.start": "last"})
    assert estimate.peak_memory(half, half.stages[0], costs, 500) < 5 * weights + 400 * each


def test_speed_is_measured_after_a_start():
    calls = []

    def step():
        calls.append(time.perf_counter())
        time.sleep(0.5 if len(calls) <= 2 else 0.02)

    assert 0.4 * 64 / 0.02 < throughput(step, 64, torch.device("cpu")) <= 64 / 0.02
    assert len(calls) == 12


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
def test_the_optimizers_memory_is_the_optimizers(name):
    network = torch.nn.Linear(3, 2)
    optimizer = optim.build(network, load_recipe(ROOT / "recipes/smoke.yaml", {"stage.optimizer": name}).stages[0])
    network(torch.ones(1, 3)).sum().backward()
    optim.step(optimizer, torch.ones(()), clip_norm=None, skip=torch.zeros(()))
    kept = [value for value in optimizer.state[network.weight].values() if value.shape == network.weight.shape]
    assert len(kept) == estimate.moments(name)
    assert estimate.LAMB_UPDATE == 4 * optim.GPU_TOGETHER
