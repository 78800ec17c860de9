"""A run that is stopped anywhere ends as one that never was: end weights, averages, moments and log, bit for bit."""

import itertools
import json
import random
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_imagenet
from config.recipe import load_recipe
from training.distributed import stop
from training.loading import Placement, train_loader
from training.logging import records, run_log
from training.loss_history import LossHistory
from training.saving import checkpoint

ROOT = Path(__file__).resolve().parents[1]

# Three stages of 2 epochs of 3, 3 and 6 steps: repeated augmentation and mixing, averages of which the second begins,
# pieces of a batch that are added up, every kind of optimizer, learning rates that move.
RECIPE = """
base: {base}
seed: 5
model: {{name: deit3_micro_patch16_224}}
stage: {{resolution: 16, epochs: 2, batch: 32, mix_chunk: 16, warmup_epochs: 1, ema: 0.9, drop_path: 0.3}}
stages:
- {{name: one, lr: 1.0e-2, schedule: step}}
- {{name: two, resolution: 32, start: ema, optimizer: adamw, schedule: step, lr: 1.0e-3, erasing: 0.5}}
- {{name: three, resolution: 16, batch: 16, optimizer: sgd, ema: none, schedule: step, loss: ce, repeats: 1}}
speed: {{device: cpu, micro_batch: 16}}
log: {{every: 2, tensorboard: false, keep: 3}}
data: {{train: {beton}, val: {beton}, workers: 1}}
"""
STEPS = 24
RAMP = """
base: {base}
model: {{name: {model}}}
stage: {{resolution: 96, ramp: [32, 0, 2], epochs: 3, batch: 48, mix_chunk: 24, warmup_epochs: 1, schedule: step,
        optimizer: {optimizer}, lr: 1.0e-2, ema: 0.9, repeats: 1}}
speed: {{device: cpu, micro_batch: 24}}
log: {{every: 1, tensorboard: false}}
data: {{train: {beton}, val: {beton}, workers: 1}}
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, jpg_beton):
    path = tmp_path_factory.mktemp("resuming") / "three.yaml"
    path.write_text(RECIPE.format(base=ROOT / "recipes" / "base.yaml", beton=jpg_beton))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(train_imagenet.report, "write", lambda folder: "")


class Stops:
    """Stands in for the signals: the run is asked to stop after a number of steps, counted from its start."""

    def __init__(self, monkeypatch):
        self.left = None
        monkeypatch.setattr(stop, "on_request", self.on_request)

    @contextmanager
    def on_request(self):
        yield self.asked

    def asked(self):
        if self.left is not None:
            self.left -= 1
        return signal.SIGTERM if self.left == 0 else None


def train(recipe_file, out, *more):
    return train_imagenet.main(["--cfg", str(recipe_file), f"--log.out={out}", "--log.name=run", *more])


def end_of(out):
    """Everything in the last checkpoint, and what the log says of epochs except for times."""
    found = checkpoint.read(checkpoint.saved(out / "run" / "checkpoints")[-1])
    rows = [row for row in records.read_rows(out / "run" / "log.jsonl") if row["kind"] == "epoch"]
    for row in rows:
        for name in ("images_per_s", "wait", "seconds", "wall", "at"):
            del row[name]
    return flat({name: value for name, value in found.items() if name != "epoch_stats"}), rows


def flat(value):
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def unbroken(recipe_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert train(recipe_file, out) is None
    return end_of(out)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2))
def test_stopped_anywhere_it_ends_with_the_same_bits(seed, recipe_file, unbroken, tmp_path, monkeypatch, capsys):
    """Stopped again and again until the end: the first run after each single step, which are also all borders of epochs
    and stages, the second after 1 to 3 steps."""
    draw, stops, points, reached = random.Random(seed), Stops(monkeypatch), [], 0
    while True:
        stops.left = 1 if seed == 0 else draw.randint(1, 3)
        reached += stops.left
        stopped = train(recipe_file, tmp_path)
        if stopped is None:
            break
        assert stopped == signal.SIGTERM
        points.append(checkpoint.read(checkpoint.saved(tmp_path / "run" / "checkpoints")[-1])["step"])
        assert points[-1] == reached
    assert end_of(tmp_path) == unbroken
    assert len(points) >= 24 if seed == 0 else len(points) >= 8
    said = capsys.readouterr().out
    assert said.count("going on at stage") == len(points)
    if seed == 0:
        assert points == list(range(1, STEPS + 1))


@pytest.mark.parametrize("model, optimizer", [("deit3_micro_patch16_224", "lamb"), ("test_resnet", "sgd")])
def test_in_the_middle_of_a_ramp_too(model, optimizer, tmp_path, jpg_beton, monkeypatch):
    """32, 64 and 96 px, an epoch of two steps each; stopped after each step."""
    path = tmp_path / "ramp.yaml"
    path.write_text(RAMP.format(base=ROOT / "recipes/base.yaml", beton=jpg_beton, model=model, optimizer=optimizer))
    assert train(path, tmp_path / "whole") is None
    whole, stops = end_of(tmp_path / "whole"), Stops(monkeypatch)
    assert [row["resolution"] for row in whole[1]] == [32, 64, 96]
    for _ in range(6):
        stops.left = 1
        assert train(path, tmp_path / "parts") == signal.SIGTERM
    assert train(path, tmp_path / "parts") is None
    assert end_of(tmp_path / "parts") == whole


def test_a_checkpoint_within_an_epoch_is_as_good(recipe_file, unbroken, tmp_path, monkeypatch):
    """Saved by the clock at each log point, and then killed: the process is gone, the newest checkpoint counts."""
    stops = Stops(monkeypatch)
    kill_at, seen = [9], []

    def asked():
        seen.append(1)
        if len(seen) == kill_at[0]:
            raise KeyboardInterrupt
        return None

    stops.asked = asked
    with pytest.raises(SystemExit):
        train(recipe_file, tmp_path, "--log.save_every=1e-9")
    saved = [checkpoint.read(path) for path in checkpoint.saved(tmp_path / "run" / "checkpoints")]
    places = [(content["stage"], content["epoch"], content["step_in_epoch"], content["step"]) for content in saved]
    assert places == [(0, 1, 2, 5), (0, 2, 0, 6), (1, 0, 2, 8)]
    kill_at[0] = 0
    newest = checkpoint.saved(tmp_path / "run" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train(recipe_file, tmp_path) is None
    assert end_of(tmp_path) == unbroken


def test_damaged_files_beside_the_checkpoints_do_not_keep_a_run_from_going_on(
    recipe_file, unbroken, tmp_path, monkeypatch, capsys
):
    stops = Stops(monkeypatch)
    stops.left = 4
    assert train(recipe_file, tmp_path) is not None
    run = tmp_path / "run"
    with (run / "log.jsonl").open("ab") as log:
        log.write(b'\xff\x00{"kind": "ep\n[]\n')
    (run / "plan.json").write_bytes(b'[{"stage": 3}]')
    for name in ("environment.json", "report.md", "report.html"):
        (run / name).write_bytes(bytes(range(256)))
    assert train(recipe_file, tmp_path) is None
    assert end_of(tmp_path) == unbroken
    said = capsys.readouterr()
    assert "log.jsonl: 2 damaged lines are left out" in said.out
    assert said.err == ""


def test_one_flipped_bit_costs_an_interval_and_no_more(recipe_file, unbroken, tmp_path, monkeypatch, capsys):
    stops = Stops(monkeypatch)
    for stops.left in (4, 3):
        assert train(recipe_file, tmp_path) is not None
    newest = checkpoint.saved(tmp_path / "run" / "checkpoints")[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    stops.left = None
    assert train(recipe_file, tmp_path) is None
    said = capsys.readouterr().out
    assert f"{newest} cannot be used (its checksum is wrong" in said
    assert end_of(tmp_path) == unbroken


@pytest.mark.parametrize("pages", [None, 2])
def test_the_order_after_a_resumption_is_that_of_any_number_of_ranks(pages, jpg_beton):
    """Ranks 1 -> 2 -> 4, each from where the one before stopped: the images of the unbroken epoch, each batch whole."""
    stage = load_recipe(ROOT / "recipes" / "smoke.yaml", {"stage.batch": "8", "stage.mix_chunk": "4"}).stages[0]

    def order_of(world):
        places = [Placement(rank=rank, world=world, workers=1) for rank in range(world)]
        loaders = [train_loader(jpg_beton, 96, stage, seed=1, placement=place, shuffle_pages=pages) for place in places]
        shares = [loader.sample_ids(3).reshape(-1, 8 // world) for loader in loaders]
        return np.concatenate(shares, axis=1)

    whole = order_of(1)
    assert whole.shape == (12, 8)
    pieces = [order_of(world)[first:last] for world, first, last in ((1, 0, 3), (2, 3, 7), (4, 7, 12))]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert len(np.unique(whole)) == whole.size


def test_a_full_disk_costs_a_warning_within_a_stage_and_status_2_at_its_end(
    recipe_file, unbroken, tmp_path, monkeypatch, capsys
):  # fmt: skip
    real, full = checkpoint.write, {1: True, 2: True, 3: False}

    def write(folder, step, content, *, keep):
        if full.get(content["epoch"], False) or content["step"] == 6:
            raise OSError(28, "No space left on device")
        real(folder, step, content, keep=keep)

    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(SystemExit) as ended:
        train(recipe_file, tmp_path)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert "stage one, step 3: no checkpoint" in output.out
    assert "(No space left on device); the one before is kept" in output.out
    assert output.err.startswith("error: stage one, step 6: no checkpoint")
    assert output.err.count("\n") == 1
    assert [row["step"] for row in records.read_rows(tmp_path / "run" / "log.jsonl") if row["kind"] == "warning"] == [3]
    monkeypatch.undo()
    monkeypatch.setattr(train_imagenet.report, "write", lambda folder: "")
    assert train(recipe_file, tmp_path) is None
    assert end_of(tmp_path) == unbroken


def test_the_log_outlives_a_full_disk(recipe_file, tmp_path, monkeypatch):
    """Rows that the disk does not take are written with later ones."""
    made = []

    class Full(records.RowWriter):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)
            calls, real = itertools.count(1), self.file

            def write(data):
                call = next(calls)
                if call in (2, 3):
                    raise OSError(28, "No space left on device")
                return real.write(data[: len(data) // 2] if call == 4 else data)

            self.file = SimpleNamespace(write=write, close=real.close, name=real.name)

    monkeypatch.setattr(run_log, "RowWriter", Full)
    train(recipe_file, tmp_path)
    rows = [row["step"] for row in records.read_rows(tmp_path / "run" / "log.jsonl") if row["kind"] == "step"]
    assert rows == [2, 5, 8, 11, *range(14, 19, 2), *range(20, 25, 2)]
    assert made[0].unwritten == b""


def test_too_little_memory_is_explained(recipe_file, tmp_path, monkeypatch, capsys):
    """Out of memory in the run itself names the micro-batch, in a step as in an evaluation; the run then goes on."""
    real = train_imagenet.forward_backward

    def forward_backward(run, stage, images, labels):
        if stage.step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(run, stage, images, labels)

    def gives_out(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    for module, name, broken, words in (
        (train_imagenet, "forward_backward", forward_backward, "for 16 samples at once (speed.micro_batch)"),
        (train_imagenet, "evaluate", gives_out, "to evaluate 16 images at once"),
    ):
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
            patched.setattr(module, name, broken)
            train(recipe_file, tmp_path)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"stage one: cpu has too little memory {words}; try --speed.micro_batch=8" in said
    assert train(recipe_file, tmp_path, "--speed.micro_batch=8") is None
    assert LossHistory().usual_if_spike(1.0) is None


def test_no_checkpoint_of_the_clock_at_an_epochs_last_step(recipe_file, tmp_path, monkeypatch):
    """The epoch's end saves the same step."""
    written, real = [], checkpoint.write

    def write(folder, step, content, *, keep):
        written.append((step, content["step_in_epoch"]))
        real(folder, step, content, keep=keep)

    monkeypatch.setattr(checkpoint, "write", write)
    stops = Stops(monkeypatch)
    stops.left = 7
    assert train(recipe_file, tmp_path, "--log.save_every=1e-9") is not None
    assert written == [(2, 2), (3, 0), (5, 2), (6, 0), (7, 1)]


def planned(out):
    return [part["stage"] for part in json.loads((out / "run" / "plan.json").read_text())]


def test_another_start_at_does_not_change_where_a_run_began(recipe_file, tmp_path, monkeypatch, capsys):
    stops = Stops(monkeypatch)
    stops.left = 2
    assert train(recipe_file, tmp_path) is not None
    with pytest.raises(SystemExit) as ended:
        train(recipe_file, tmp_path, "--start-at=two")
    assert ended.value.code == 2
    assert "run stands at stage one, before --start-at two; go on without" in capsys.readouterr().err
    assert planned(tmp_path) == ["one", "two", "three"]
    stops.left = 8
    assert train(recipe_file, tmp_path) is not None  # in stage two
    stops.left = 1
    assert train(recipe_file, tmp_path, "--start-at=two") is not None
    assert planned(tmp_path) == ["one", "two", "three"]


def test_a_run_that_began_at_a_later_stage_goes_on_without_being_told_so(recipe_file, tmp_path, monkeypatch):
    stops, other = Stops(monkeypatch), tmp_path / "other"
    stops.left = 7
    assert train(recipe_file, other) is not None  # for the weights of stage one
    stops.left = 2
    init = f"--init={other / 'run' / 'one.safetensors'}"
    assert train(recipe_file, tmp_path, init, "--start-at=two") is not None
    stops.left = 5
    assert train(recipe_file, tmp_path) is not None
    assert planned(tmp_path) == ["two", "three"]
