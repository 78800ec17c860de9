"""The hot loop: what the host reads, and what happens to steps that are not finite."""

import copy
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_imagenet
from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from ffcv_ops.mixing import Patches
from training import datasets, distributed, optim
from training.memory.micro_batch import random_batch
from training.network import model
from training.run import Run
from training.saving.run_folder import RunFolder
from training.stage import create_stage
from training.step_stats import Meter

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def run_of(tmp_path, **keys):
    keys = {"stage.resolution": "32", "stage.batch": "8", "stage.mix_chunk": "8", "speed.micro_batch": "4",
            "stage.drop_path": "0.2", "log.out": str(tmp_path), "log.every": "4"} | keys  # fmt: skip
    recipe = load_recipe(ROOT / "recipes/smoke.yaml", keys)
    data, ranks = {"main": datasets.DataSet(None, None, 5)}, distributed.Ranks(0, 1, CPU)
    folder = RunFolder(recipe)
    folder.prepare(recipe, {})
    return Run(recipe, ranks, data, torch.float32, folder, Silent())


class Batches:
    """A loader of random images."""

    def __init__(self, run, count):
        torch.manual_seed(1)
        self.batches = [random_batch(run, run.recipe.stages[0], 8) for _ in range(count)]
        self.corrupt_samples = SimpleNamespace(replaced=0)

    def __len__(self):
        return len(self.batches)

    def epoch(self, number, start=0, *, resolution):
        assert resolution == 32
        yield from self.batches[start:]


class Silent:
    def __init__(self):
        self.rows, self.said = [], []

    def row(self, **values):
        self.rows.append(values)

    def advance(self, steps, epoch, row):
        pass

    def say(self, text):
        self.said.append(text)

    def warn(self, said, **where):
        self.row(kind="warning", said=said, **where)
        self.say(said)


def stage_of(run, batches):
    stage = create_stage(run, 0)
    stage.train_loader, stage.micro_batch_size, stage.meter, stage.seed = batches, 4, Meter(CPU), 3
    return stage


class Reads(TorchDispatchMode):
    """Counts the operations whose results the host must see: each would make it wait for a GPU."""

    words = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        if name in self.words:
            self.found.append(name)
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("optimizer", ["lamb", "adamw", "sgd"])
@pytest.mark.parametrize("drop_path", ["exact", "subset"])
def test_between_log_points_the_host_reads_nothing(optimizer, drop_path, tmp_path):
    run = run_of(tmp_path, **{"stage.optimizer": optimizer, "speed.drop_path": drop_path})
    stage = stage_of(run, Batches(run, 8))
    with Reads() as reads:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
        assert reads.found == ["_local_scalar_dense", "nonzero"], "the count itself"
        reads.found.clear()
        train_imagenet.train_epoch(run, stage)
    assert len([row for row in run.log.rows if row["kind"] == "step"]) == 2
    assert stage.epoch_stats.steps == 8
    assert reads.found == []


@pytest.mark.parametrize("drop_path", ["exact", "subset"])
def test_a_step_runs_on_tensors_without_contents(drop_path, tmp_path, monkeypatch):
    """On the meta device anything that needs a value fails, whichever way it is read. torch has LAMB's kernels there,
    not SGD's, of which the average is made."""
    run = run_of(tmp_path, **{"speed.drop_path": drop_path})
    stage = stage_of(run, Batches(run, 2))
    stage.model.to("meta")
    stage.ema, stage.optimizer = None, optim.build(stage.model, stage.config)
    run = dataclasses.replace(run, ranks=run.ranks._replace(device=torch.device("meta")))
    stage.train_loader, stage.meter = Batches(run, 2), Meter(torch.device("meta"))
    monkeypatch.setattr(Run, "autocast", lambda self: nullcontext())
    with pytest.raises(NotImplementedError, match="meta"):  # by the log point at the end, which reads
        train_imagenet.train_epoch(run, stage)
    assert stage.step == 2


def poison(monkeypatch, steps, loss=float("nan"), gradient=float("nan")):
    """Multiplies loss and gradients of these steps."""
    real = train_imagenet.forward_backward

    def forward_backward(run, stage, images, labels):
        value = real(run, stage, images, labels)
        if stage.step in steps:
            value = value * loss
            for parameter in stage.model.parameters():
                parameter.grad *= gradient
        return value

    monkeypatch.setattr(train_imagenet, "forward_backward", forward_backward)


def weights_of(stage):
    tensors = {**stage.model.state_dict(), **{f"ema.{k}": v for k, v in stage.ema.state_dict().items()}}
    for number, kept in stage.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in kept.items()}
    return {key: value.clone() for key, value in tensors.items()}


@pytest.mark.parametrize("bad", [0, 4, 6])
def test_a_bad_step_stops_the_run_with_the_state_before_it(bad, tmp_path, monkeypatch):
    """Found at the next log point, and yet the checkpoint is that of the last good step, bit for bit."""
    run = run_of(tmp_path)
    batches = Batches(run, 8)
    reference = stage_of(run, copy.copy(batches))
    reference.train_loader.batches = batches.batches[:bad]
    train_imagenet.train_epoch(run, reference)

    stage = stage_of(run, batches)
    poison(monkeypatch, {bad, bad + 2})
    words = f"stage first_32, step {bad + 1}: loss nan, gradient norm nan; stopped"
    with pytest.raises(UserError, match=words) as said:
        train_imagenet.train_epoch(run, stage)
    assert "\n" not in str(said.value)
    saved = run.folder.load()
    assert (saved["step"], saved["step_in_epoch"], saved["epoch"]) == (bad, bad, 0)
    resumed = create_stage(run, 0)
    resumed.load_state_dict(saved)
    means = resumed.epoch_stats
    assert (means.losses, means.steps, means.images, means.bad) == (bad, bad, 8 * bad, 0)
    one, other = weights_of(reference), weights_of(resumed)
    if bad == 0:
        other = {key: value for key, value in other.items() if key in one}  # moments of 0 after no step
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_infinite_loss_with_finite_gradients_is_a_bad_step(tmp_path, monkeypatch):
    """BCE of an infinite logit: the loss is infinite, its gradient 0."""
    run = run_of(tmp_path, on_nonfinite="skip")
    stage = stage_of(run, Batches(run, 4))
    before = weights_of(stage)
    poison(monkeypatch, {0, 1, 2, 3}, loss=float("inf"), gradient=1.0)
    train_imagenet.train_epoch(run, stage)
    assert stage.epoch_stats.bad == 4
    after = weights_of(stage)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert run.log.said[0].startswith("stage first_32, step 1: loss inf, gradient norm ")


def test_with_a_scaler_the_state_is_that_of_the_log_point_and_said_to_be(tmp_path, monkeypatch):
    """Scaled gradients cannot be halted for: what follows the bad step counts."""
    run = run_of(tmp_path)
    stage = stage_of(run, Batches(run, 8))
    stage.scaler = torch.amp.GradScaler("cpu", enabled=True)
    poison(monkeypatch, {1})
    words = r"step 2: loss nan, .* holds the state after step 4, without that one \(fp16: the steps after it moved"
    with pytest.raises(UserError, match=words):
        train_imagenet.train_epoch(run, stage)
    saved = run.folder.load()
    assert (saved["step"], saved["step_in_epoch"], saved["epoch_stats"]["steps"], saved["epoch_stats"]["bad"]) == (
        4,
        4,
        4,
        1,
    )


def test_bad_steps_are_left_out_and_counted(tmp_path, monkeypatch):
    """`skip`: what follows is as if the weights had been kept by hand."""
    run = run_of(tmp_path, on_nonfinite="skip")
    batches, log = Batches(run, 8), run.log
    stage = stage_of(run, batches)
    poison(monkeypatch, {1, 2, 6})
    train_imagenet.train_epoch(run, stage)
    means = stage.epoch_stats
    assert (means.bad, means.losses, means.norms, stage.step) == (3, 5, 5, 8)
    steps = [row for row in log.rows if row["kind"] == "step"]
    assert [row["bad_steps"] for row in steps] == [2, 1]
    assert all(row["loss"] > 0 for row in steps)
    assert [row["said"] for row in log.rows if row["kind"] == "warning"] == log.said
    assert log.said[0].startswith("stage first_32, step 2: loss nan")
    assert "left out, and 1 of the 2 steps after it" in log.said[0]
    assert all(value.isfinite().all() for value in weights_of(stage).values())
    monkeypatch.undo()

    by_hand = stage_of(run, batches)
    by_hand.model.train()
    for k, (images, labels) in enumerate(batches.batches):
        by_hand.step_in_epoch = k
        if k not in {1, 2, 6}:
            optim.set_lr(by_hand.optimizer, steps[k // 4]["lr"])
            train_imagenet.forward_backward(run, by_hand, images, labels)
            norm, never = optim.gradient_norm(by_hand.optimizer), torch.zeros(())
            clip_norm = by_hand.config.clip_norm
            optim.step(by_hand.optimizer, norm, clip_norm=clip_norm, skip=never, average=by_hand.average)
    one, other = weights_of(stage), weights_of(by_hand)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_running_statistics_do_not_keep_what_a_bad_step_has_seen(tmp_path):
    """One image that is not finite would stay in the running mean for ever. The steps are those without it."""
    found = []
    for steps in ((0, 1, 2), (0, 2)):  # the second of three is bad; and a run that never has it
        run = run_of(tmp_path / str(len(steps)), **{"model.name": "resnet18"}, on_nonfinite="skip")
        batches = Batches(run, 3)
        batches.batches = [batches.batches[k] for k in steps]
        stage = stage_of(run, batches)
        bad = stage.train_loader.batches[1][0] if len(steps) == 3 else None

        def spoil(module, inputs, stage=stage, bad=bad):
            return (inputs[0] * float("inf"),) if bad is not None and stage.step_in_epoch == 1 else None

        stage.model.register_forward_pre_hook(spoil)
        train_imagenet.train_epoch(run, stage)
        assert stage.epoch_stats.bad == len(steps) - 2
        found.append({name: buffer.clone() for name, buffer in stage.model.named_buffers()})
    assert all(value.isfinite().all() for value in found[0].values())
    assert found[0]["bn1.num_batches_tracked"] == found[1]["bn1.num_batches_tracked"]
    assert torch.allclose(found[0]["bn1.running_mean"], found[1]["bn1.running_mean"], atol=0.05)
    assert not torch.equal(found[0]["bn1.running_mean"], torch.zeros(64))


@pytest.mark.parametrize("most, ends", [(4, True), (5, False)])
def test_too_many_bad_steps_in_a_row_end_the_run(most, ends, tmp_path, monkeypatch):
    """Five in a row, over the border of two log intervals; one in front of them does not count."""
    run = run_of(tmp_path, on_nonfinite="skip", nonfinite_in_a_row=str(most))
    poison(monkeypatch, {0, 2, 3, 4, 5, 6})
    stage = stage_of(run, Batches(run, 8))
    run.folder.save(stage.state_dict(), {}, is_main=True)
    before = {path: path.read_bytes() for path in run.folder.checkpoints.iterdir()}
    if ends:
        with pytest.raises(UserError, match=r"step 5: .*more than 4 steps in a row .* not finite; stopped") as said:
            train_imagenet.train_epoch(run, stage)
        assert "\n" not in str(said.value)
    else:
        train_imagenet.train_epoch(run, stage)
        assert stage.epoch_stats.bad == 6
    assert {path: path.read_bytes() for path in run.folder.checkpoints.iterdir()} == before, "the last good one is kept"


def test_convolutional_weights_are_channels_last(tmp_path):
    for name, expected in (("resnet18", True), ("deit3_micro_patch16_224", False)):
        stage = create_stage(run_of(tmp_path / name, **{"model.name": name}), 0)
        matrices = [p for p in stage.model.parameters() if p.ndim == 4 and p.shape[2] > 1 and p.shape[1] > 1]
        assert {p.is_contiguous(memory_format=torch.channels_last) for p in matrices} == {expected}


def test_a_meter_gives_the_means_and_the_first_bad_step():
    meter = Meter(CPU)
    rows = [(2.0, 1.0, 0), (float("nan"), float("inf"), 1), (4.0, 3.0, 0), (5.0, float("nan"), 1)]
    for loss, norm, bad in rows:
        meter.add(torch.tensor(loss), torch.tensor(norm), torch.tensor(float(bad)), 10)
    reading = meter.read(stop="SIGTERM", save=True)
    assert (reading.stop, reading.save, reading.bad_in_a_row) == ("SIGTERM", True, 1)
    assert (reading.first_bad[0], reading.first_bad[2]) == (2, float("inf"))
    row = reading.stats.row()
    assert (row["loss"], row["grad_norm"], row["bad_steps"], reading.stats.images) == (3.0, 2.0, 2, 40)
    doubled = reading.stats + reading.stats
    assert (doubled.row()["loss"], doubled.bad, doubled.steps) == (3.0, 4, 8)
    again = meter.read()
    assert (again.first_bad, again.stats.steps, again.stop, again.save) == (None, 0, None, False)


def test_a_step_on_patches_is_the_step_on_images(tmp_path):
    """As on a GPU: the first layer is a matrix product then."""
    run, found = run_of(tmp_path), []
    batches = Batches(run, 1)
    for patches in (None, Patches(16, torch.float32)):
        stage = stage_of(run, batches)
        stage.patches = patches
        stage.model.train()
        loss = train_imagenet.forward_backward(run, stage, *batches.batches[0])
        found.append([loss, *(p.grad for p in stage.model.parameters())])
    assert model.patch_side(stage.model) == 16
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)
    assert stage.model.patch_embed.proj.weight.grad.abs().max() > 1e-6
