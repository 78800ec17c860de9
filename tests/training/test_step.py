"""The hot loop: what the host reads, and what happens to steps that are not finite."""

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_imagenet
from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from training import datasets, distributed, guards, step
from training.state import RunFolder
from training.step import Run, random_batch
from training.step_stats import Meter, StepStats

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def job_of(tmp_path, **keys):
    keys = {"stage.resolution": "32", "stage.batch": "8", "stage.mix_chunk": "8", "speed.micro_batch": "4",
            "stage.drop_path": "0.2", "log.out": str(tmp_path), "log.every": "4"} | keys  # fmt: skip
    recipe = load_recipe(ROOT / "recipes/smoke.yaml", keys)
    return Run(recipe, distributed.Ranks(0, 0, 1, CPU), {"main": datasets.DataSet(None, None, 5)}, torch.float32)


class Batches:
    """A loader of random images, with a class of images that make gradients infinite at `bad` steps."""

    def __init__(self, run, count):
        torch.manual_seed(1)
        self.batches = [random_batch(run, run.recipe.stages[0], 8) for _ in range(count)]
        self.bad = SimpleNamespace(replaced=0)

    def __len__(self):
        return len(self.batches)

    def epoch(self, number, first=0):
        yield from self.batches[first:]


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


def epoch(run, state, batches, log):
    return train_imagenet.train_epoch(
        run, state, run.recipe.stages[0], state.model, batches, seed=3, piece=4, meter=Meter(CPU), due=lambda: False,
        log=log, asked=lambda: None,
    )  # fmt: skip


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
    run = job_of(tmp_path, **{"stage.optimizer": optimizer, "speed.drop_path": drop_path})
    state = train_imagenet.begin_stage(run, 0, None, 0)
    with Reads() as reads:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
        assert reads.found == ["_local_scalar_dense", "nonzero"], "the count itself"
        reads.found.clear()
        readings = list(epoch(run, state, Batches(run, 8), Silent()))
    assert [reading.means.steps for reading in readings] == [4, 4]
    assert reads.found == []


@pytest.mark.parametrize("drop_path", ["exact", "subset"])
def test_a_step_runs_on_tensors_without_contents(drop_path, tmp_path, monkeypatch):
    """On the meta device anything that needs a value fails, whichever way it is read. torch has LAMB's kernels there,
    not SGD's, of which the average is made."""
    run = job_of(tmp_path, **{"speed.drop_path": drop_path})
    run = run._replace(ranks=run.ranks._replace(device=torch.device("meta")))
    monkeypatch.setattr(Run, "autocast", lambda self: nullcontext())
    state = train_imagenet.begin_stage(job_of(tmp_path), 0, None, 0)
    state.model.to("meta").train()
    state.average = None
    state.optimizer = train_imagenet.optim.build(state.model, run.recipe.stages[0])
    meter = Meter(torch.device("meta"))
    for _ in range(2):
        images, labels = random_batch(run, run.recipe.stages[0], 8)
        loss = step.gradients(run, state, run.recipe.stages[0], state.model, images, labels, step=0, seed=0, piece=4)
        norm, bad = step.update(run, state, run.recipe.stages[0], loss)
        meter.add(loss, norm, bad, 8, 0.0)
    assert loss.device.type == norm.device.type == bad.device.type == "meta"
    with pytest.raises(NotImplementedError):
        meter.read()


def poison(monkeypatch, steps):
    """Makes the loss of these steps infinite."""
    real = step.gradients

    def gradients(run, state, *given, **named):
        loss = real(run, state, *given, **named)
        if state.step in steps:
            loss = loss * float("nan")
            for parameter in state.model.parameters():
                parameter.grad *= float("nan")
        return loss

    monkeypatch.setattr(train_imagenet, "gradients", gradients)


def run_to_the_end(run, state, batches, folder, log):
    means = StepStats()
    for reading in epoch(run, state, batches, log):
        means += reading.means
        guards.heed(run, state, run.recipe.stages[0], folder, log, reading, means, guards.Spikes())
    return means


def weights_of(state):
    tensors = {**state.model.state_dict(), **{f"average.{k}": v for k, v in state.average.state_dict().items()}}
    for number, kept in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in kept.items()}
    return {key: value.clone() for key, value in tensors.items()}


@pytest.mark.parametrize("bad", [0, 4, 6])
def test_a_bad_step_stops_the_run_with_the_state_before_it(bad, tmp_path, monkeypatch):
    """Found at the next log point, and yet the checkpoint is that of the last good step, bit for bit."""
    run, folder = job_of(tmp_path), None
    folder = RunFolder(run.recipe)
    folder.prepare(run.recipe)
    batches = Batches(run, 8)
    reference = train_imagenet.begin_stage(run, 0, None, 0)
    short = copy.copy(batches)
    short.batches = batches.batches[:bad]
    list(epoch(run, reference, short, Silent()))

    state = train_imagenet.begin_stage(run, 0, None, 0)
    poison(monkeypatch, {bad, bad + 2})
    words = f"stage first_32, step {bad + 1}: loss nan, gradient norm nan; stopped"
    with pytest.raises(UserError, match=words) as said:
        run_to_the_end(run, state, batches, folder, Silent())
    assert "\n" not in str(said.value)
    saved = folder.load()
    assert (saved["step"], saved["batch"], saved["epoch"]) == (bad, bad, 0)
    resumed = train_imagenet.begin_stage(run, 0, None, 0)
    means = train_imagenet.restore(resumed, saved)
    assert (means.losses, means.steps, means.images, means.bad) == (bad, bad, 8 * bad, 0)
    one, other = weights_of(reference), weights_of(resumed)
    if bad == 0:
        other = {key: value for key, value in other.items() if key in one}  # moments of 0 after no step
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_with_a_scaler_the_state_is_that_of_the_log_point_and_said_to_be(tmp_path, monkeypatch):
    """Scaled gradients cannot be halted for: what follows the bad step counts."""
    run = job_of(tmp_path)
    folder, state = RunFolder(run.recipe), train_imagenet.begin_stage(run, 0, None, 0)
    folder.prepare(run.recipe)
    state.scaler = torch.amp.GradScaler("cpu", enabled=True)
    poison(monkeypatch, {1})
    words = r"step 2: loss nan, .* holds the state after step 4, without that one \(fp16: the steps after it moved"
    with pytest.raises(UserError, match=words):
        run_to_the_end(run, state, Batches(run, 8), folder, Silent())
    saved = folder.load()
    assert (saved["step"], saved["batch"], saved["epoch_stats"]["steps"], saved["epoch_stats"]["bad"]) == (4, 4, 4, 1)


def test_bad_steps_are_left_out_and_counted(tmp_path, monkeypatch):
    """`skip`: what follows is as if the weights had been kept by hand."""
    run = job_of(tmp_path, on_nonfinite="skip")
    batches, log = Batches(run, 8), Silent()
    state = train_imagenet.begin_stage(run, 0, None, 0)
    poison(monkeypatch, {1, 2, 6})
    means = run_to_the_end(run, state, batches, RunFolder(run.recipe), log)
    assert (means.bad, means.losses, means.norms, state.step) == (3, 5, 5, 8)
    steps = [row for row in log.rows if row["kind"] == "step"]
    assert [row["bad_steps"] for row in steps] == [2, 1]
    assert all(row["loss"] > 0 for row in steps)
    assert [row["said"] for row in log.rows if row["kind"] == "warning"] == log.said
    assert log.said[0].startswith("stage first_32, step 2: loss nan")
    assert "left out, and 1 of the 2 steps after it" in log.said[0]
    assert all(value.isfinite().all() for value in weights_of(state).values())
    monkeypatch.undo()

    by_hand = train_imagenet.begin_stage(run, 0, None, 0)
    for k, (images, labels) in enumerate(batches.batches):
        by_hand.step = k
        if k not in {1, 2, 6}:
            train_imagenet.optim.set_lr(by_hand.optimizer, steps[k // 4]["lr"])
            given = {"step": k, "seed": 3, "piece": 4}
            loss = step.gradients(run, by_hand, run.recipe.stages[0], by_hand.model.train(), images, labels, **given)
            step.update(run, by_hand, run.recipe.stages[0], loss)
    one, other = weights_of(state), weights_of(by_hand)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("most, ends", [(4, True), (5, False)])
def test_too_many_bad_steps_in_a_row_end_the_run(most, ends, tmp_path, monkeypatch):
    """Five in a row, over the border of two log intervals; one in front of them does not count."""
    run = job_of(tmp_path, on_nonfinite="skip", nonfinite_in_a_row=str(most))
    poison(monkeypatch, {0, 2, 3, 4, 5, 6})
    state, folder = train_imagenet.begin_stage(run, 0, None, 0), RunFolder(run.recipe)
    folder.prepare(run.recipe)
    folder.save(state, StepStats(), is_main=True)
    before = {path: path.read_bytes() for path in folder.checkpoints.iterdir()}
    if ends:
        with pytest.raises(UserError, match=r"step 5: .*more than 4 steps in a row .* not finite; stopped") as said:
            run_to_the_end(run, state, Batches(run, 8), folder, Silent())
        assert "\n" not in str(said.value)
    else:
        assert run_to_the_end(run, state, Batches(run, 8), folder, Silent()).bad == 6
    assert {path: path.read_bytes() for path in folder.checkpoints.iterdir()} == before, "the last good one is kept"


def test_convolutional_weights_are_channels_last(tmp_path):
    for name, expected in (("resnet18", True), ("deit3_micro_patch16_224", False)):
        state = train_imagenet.begin_stage(job_of(tmp_path, **{"model.name": name}), 0, None, 0)
        matrices = [p for p in state.model.parameters() if p.ndim == 4 and p.shape[2] > 1 and p.shape[1] > 1]
        assert {p.is_contiguous(memory_format=torch.channels_last) for p in matrices} == {expected}


def test_a_meter_gives_the_means_and_the_first_bad_step():
    meter = Meter(CPU)
    rows = [(2.0, 1.0, 0), (float("nan"), float("inf"), 1), (4.0, 3.0, 0), (5.0, float("nan"), 1)]
    for loss, norm, bad in rows:
        meter.add(torch.tensor(loss), torch.tensor(norm), torch.tensor(float(bad)), 10, 0.5)
    reading = meter.read(stop="SIGTERM", due=True)
    assert (reading.stop, reading.save, reading.bad_in_a_row) == ("SIGTERM", True, 1)
    assert (reading.first_bad[0], reading.first_bad[2]) == (2, float("inf"))
    row = reading.means.row()
    assert (row["loss"], row["grad_norm"], row["bad_steps"], reading.means.images) == (3.0, 2.0, 2, 40)
    doubled = reading.means + reading.means
    assert (doubled.row()["loss"], doubled.bad, doubled.steps) == (3.0, 4, 8)
    again = meter.read()
    assert (again.first_bad, again.means.steps, again.stop, again.save) == (None, 0, None, False)
