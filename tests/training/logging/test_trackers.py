"""What TensorBoard and Weights & Biases are told, and that none of them can end a run."""

import sys
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.recipe import BASE_RECIPE, load_recipe
from training.logging import trackers

STEP = {"kind": "step", "stage": "a", "epoch": 0, "step": 5, "loss": 0.5, "lr": 0.1, "grad_norm": 2.0, "wait": 0.25,
        "images_per_s": 100.0, "seconds": 1.0, "bad_steps": 0, "wall": 9.0, "at": 1}  # fmt: skip
EPOCH = STEP | {"kind": "epoch", "epoch": 1, "step": 9, "top1": 0.25, "val_loss": 3.0, "ema_top1": 0.5,
                "resolution": 48}  # fmt: skip


def begin(folder, lines, *, tensorboard=False, tracker="none", **overrides):
    given = {"log.tensorboard": str(tensorboard).lower(), "log.tracker": tracker} | overrides
    recipe = load_recipe(BASE_RECIPE.parent / "smoke.yaml", given)
    return trackers.Trackers(folder, recipe, step=-1, say=lines.append)


def test_tensorboard_has_groups_and_the_recipe(tmp_path):
    lines = []
    told = begin(tmp_path, lines, tensorboard=True)
    told.row(STEP)
    told.row(EPOCH)
    told.row({"kind": "warning", "step": 9, "text": "x"})
    told.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    values = {name: [(e.step, round(e.value, 6)) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert values["loss/train"] == [(5, 0.5)]
    assert values["loss/train_of_epoch"] == [(9, 0.5)]
    assert values["loss/val"] == [(9, 3.0)]
    assert values["accuracy/top1"] == [(9, 0.25)]
    assert values["accuracy/ema_top1"] == [(9, 0.5)]
    assert values["data/resolution"] == [(9, 48)]
    assert values["optimizer/lr"] == [(5, 0.1)]
    assert values["optimizer/grad_norm"] == [(5, 2.0)]
    assert values["speed/data_wait"] == [(5, 0.25)]
    assert {name.partition("/")[0] for name in values} == {"loss", "accuracy", "optimizer", "data", "speed"}
    text = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    model:\n      name: " in text
    assert lines == []


def test_wandb_offline_goes_on_under_the_same_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "5ec" + "0" * 37)
    folder, lines = tmp_path / "run", []
    folder.mkdir()
    for _ in range(2):
        told = begin(folder, lines, tracker="wandb", seed="31337")
        told.row(STEP)
        told.close()
    assert lines == []
    written = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in written}) == 1
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"loss/train" in content
    assert b"31337" in content
    assert b"5ec0000" not in content


class Fake(ModuleType):
    """Stands in for wandb."""

    Settings = dict

    def __init__(self, fails_at):
        super().__init__("wandb")
        self.calls, self.fails_at = [], fails_at
        self.log = self.finish = None

    def init(self, **options):
        if self.fails_at == "init":
            raise RuntimeError("no\nnetwork")
        self.calls.append(options)
        return self

    def __getattribute__(self, name):
        if name == "log":
            return self._log
        if name == "finish":
            return lambda: self.calls.append("finish")
        return super().__getattribute__(name)

    def _log(self, values, step):
        if self.fails_at == step:
            raise ConnectionError("gone")
        self.calls.append((values.get("loss/train"), step))


@pytest.mark.parametrize("fails_at", ["init", 5])
def test_a_failing_tracker_costs_one_line(tmp_path, monkeypatch, fails_at):
    monkeypatch.setitem(sys.modules, "wandb", Fake(fails_at))
    lines = []
    told = begin(tmp_path, lines, tracker="wandb")
    for _ in range(3):
        told.row(STEP)
    told.row(EPOCH)
    told.close()
    reason = "no network" if fails_at == "init" else "gone"
    assert lines == [f"warning: wandb is left out from here on: {reason}"]


def test_what_is_not_asked_for_is_not_imported(tmp_path, monkeypatch):
    for name in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    lines = []
    told = begin(tmp_path, lines)
    told.row(STEP)
    told.close()
    assert lines == []
    begin(tmp_path, lines, tracker="wandb").row(STEP)
    assert len(lines) == 1
    assert "wandb is left out" in lines[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_an_identity_that_is_not_whole_is_made_anew(content, tmp_path):
    (tmp_path / "tracker.json").write_text(content)
    made = trackers._identity(tmp_path)
    assert len(made) == 12
    assert trackers._identity(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["tracker.json"]
