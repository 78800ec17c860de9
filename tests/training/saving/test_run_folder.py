"""Checkpoints are complete; run folders belong to one recipe."""

import copy
import dataclasses
import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from config.recipe import load_recipe, result_changing_diff
from ffcv_ops.errors import UserError
from ffcv_ops.storage.info import DatasetInfo
from training import optim
from training.datasets import DataSet
from training.logging.records import read_json
from training.network.stochastic_depth import DepthMasks
from training.saving import checkpoint, run_identity
from training.saving.run_folder import RunFolder
from training.stage import Stage
from training.step_stats import StepStats

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path):
    return load_recipe(ROOT / "recipes" / "smoke.yaml", {"log.out": str(tmp_path / "runs")})


def begun(run):
    torch.manual_seed(0)
    network, config = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), run.stages[0]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    masks = DepthMasks(network, subset=False)
    return Stage(config, 0, 0, network, copy.deepcopy(network), optim.build(network, config), scaler, masks)


def trained(run, steps=3):
    stage = begun(run)
    for _ in range(steps):
        stage.model(torch.randn(5, 4)).square().sum().backward()
        norm, never = optim.gradient_norm(stage.optimizer), torch.zeros(())
        average = optim.Average(stage.ema, stage.model, 0.9)
        optim.step(stage.optimizer, norm, clip_norm=stage.config.clip_norm, skip=never, average=average)
        stage.step += 1
    stage.epoch, stage.step_in_epoch = 1, 2
    return stage


def test_what_is_saved_comes_back(run):
    folder, before = RunFolder(run), trained(run)
    folder.prepare(run, {})
    assert folder.load() is None
    before.epoch_stats = StepStats(steps=2, loss=1.5, losses=2)
    folder.save(before.state_dict(), {}, is_main=True)
    after = begun(run)
    after.load_state_dict(folder.load())
    assert after.epoch_stats == before.epoch_stats
    assert (after.epoch, after.step_in_epoch, after.step) == (1, 2, 3)
    for name in ("model", "ema", "optimizer"):
        one, other = (getattr(s, name).state_dict() for s in (before, after))
        assert flat(one) == flat(other)
    again = begun(run)
    assert flat(again.model.state_dict()) != flat(after.model.state_dict())


def flat(value):
    """Nested state as plain values, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat(item) for item in value]
    return value


def test_the_last_stages_weights_are_a_file_of_their_own(run):
    """Which all may read who may read the others."""
    umask = os.umask(0o022)
    os.umask(umask)
    folder, before = RunFolder(run), trained(run)
    folder.prepare(run, {})
    folder.save_weights("model", before.model, is_main=True)
    assert flat(load_file(folder.path / "model.safetensors")) == flat(dict(before.model.state_dict()))
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.path.iterdir() if path.is_file()}
    assert set(modes.values()) == {oct(0o666 & ~umask)}, modes


def test_a_checkpoint_of_another_version_or_run_is_refused_in_one_line(run):
    folder = RunFolder(run)
    folder.prepare(run, {})
    good = {"format": 4, "stage": 0, "epoch": 0, "step_in_epoch": 0, "step": 1}
    for content in (good | {"format": 3}, good | {"epoch": -1}, good | {"step_in_epoch": "0"}, {"format": 4}):
        checkpoint.write(folder.checkpoints, 1, content, keep=1)
        with pytest.raises(UserError, match=r"000000001\.pt: not a checkpoint of this version") as caught:
            folder.load()
        assert "\n" not in str(caught.value)
    folder.save(trained(run).state_dict(), {}, is_main=True)
    whole = folder.load()
    other = trained(run)
    other.model = nn.Linear(7, 7)
    for stage, content in ((other, whole), (trained(run), {k: v for k, v in whole.items() if k != "optimizer"}),
                           (trained(run), whole | {"epoch_stats": {"speed": 1}})):  # fmt: skip
        with pytest.raises(UserError, match="the checkpoint of step 3 is not one of this run") as caught:
            stage.load_state_dict(content)
        assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_what_was_saved_before(run, monkeypatch):
    folder = RunFolder(run)
    folder.prepare(run, {})
    before = trained(run)
    assert folder.save(before.state_dict(), {}, is_main=True) == ""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before.step = 4
    assert folder.save(before.state_dict(), {}, is_main=True) == "No space left on device"
    assert [path.name for path in folder.checkpoints.iterdir()] == ["000000003.pt"]
    assert folder.load()["step"] == 3


def test_strays_of_a_killed_writer_are_removed(run):
    folder = RunFolder(run)
    folder.prepare(run, {})
    strays = [folder.path / "recipe.yaml.7.tmp", folder.checkpoints / "000000009.pt.7.tmp"]
    for stray in strays:
        stray.write_bytes(b"half")
    folder.prepare(run, {})
    assert not any(stray.exists() for stray in strays)


def test_a_checkpoint_is_due_by_the_clock(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("training.saving.run_folder.time.monotonic", lambda: now[0])
    folder = RunFolder(dataclasses.replace(run, log=dataclasses.replace(run.log, save_every=2.0)))
    never = RunFolder(dataclasses.replace(run, log=dataclasses.replace(run.log, save_every=None)))
    folder.prepare(run, {})
    found = []
    for now[0] in (219.0, 220.0, 221.0):
        found.append(folder.is_checkpoint_due())
    folder.save(trained(run).state_dict(), {}, is_main=True)
    assert (found, folder.is_checkpoint_due(), never.is_checkpoint_due()) == ([False, True, True], False, False)


def test_a_refused_start_leaves_nothing_behind(run):
    folder = RunFolder(run)
    with pytest.raises(UserError), folder.alone():
        raise UserError("refused")
    assert not folder.path.exists()
    with folder.alone():
        (folder.path / "log.jsonl").touch()
    assert [path.name for path in folder.path.iterdir()] == ["log.jsonl"]


def test_a_folder_belongs_to_one_recipe(run):
    folder = RunFolder(run)
    folder.prepare(run, {})
    folder.save(trained(run).state_dict(), {}, is_main=True)
    folder.check_recipe(dataclasses.replace(run, data=dataclasses.replace(run.data, workers=1)))
    stages = (dataclasses.replace(run.stages[0], lr=0.5), *run.stages[1:])
    with pytest.raises(UserError, match=r"stage first_32: lr .* not 0\.5"):
        folder.check_recipe(dataclasses.replace(run, stages=stages))


def test_the_recipe_in_the_folder_goes_on_there(run):
    folder = RunFolder(run)
    folder.prepare(run, {})
    again = load_recipe(folder.path / "recipe.yaml")
    assert RunFolder(again).path == folder.path
    assert result_changing_diff(run, again) == ""


def identity(run, train="t1", val="v1", **other):
    info = DatasetInfo(Path("x.beton"), 9, 4, None)
    data = {"main": DataSet(info._replace(fingerprint=train), info._replace(fingerprint=val), 4)}
    return run_identity.identity_of(run, data, **({"init": None, "code": "c"} | other))


WEIGHTS = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}


def test_a_checkpoint_belongs_to_one_run(run):
    """By recipe, data and first weights; the code may change."""
    folder, before = RunFolder(run), identity(run, init=run_identity.init_of("w.pth", WEIGHTS))
    folder.prepare(run, before)
    folder.save(trained(run).state_dict(), before, is_main=True)
    saved = folder.load()
    assert saved["run"] == before == read_json(folder.path / run_identity.FILE)
    for same in (before, identity(run), identity(run, code="d", init=run_identity.init_of("moved.pth", WEIGHTS))):
        folder.check_checkpoint(saved, run, same)
    other_weights = run_identity.init_of("w.pth", {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64)})
    cases = (
        (identity(dataclasses.replace(run, seed=1)), "seed 0, not 1"),
        (identity(run, train="t2"), "its train data have other images"),
        (identity(run, val="v2"), "its val data have other images"),
        (identity(run, init=other_weights), "it began from w.pth"),
    )
    for now, words in cases:
        with pytest.raises(UserError, match=f"step 3 is one of another run .*{words}") as caught:
            folder.check_checkpoint(saved, run, now)
        assert "\n" not in str(caught.value)
    for damaged in ({}, {"options": 3}, {"options": {}, "data": [], "init": None}):
        with pytest.raises(UserError, match="another run"):
            folder.check_checkpoint(saved | {"run": damaged}, run, identity(run))


@pytest.mark.parametrize("place", [{"epoch": 99}, {"stage": 7}])
def test_a_checkpoint_from_beyond_the_recipe_is_refused(run, place):
    folder = RunFolder(run)
    saved = {"run": identity(run), "step": 5, "stage": 0, "epoch": 1, "step_in_epoch": 0} | place
    with pytest.raises(UserError, match=r"step 5 stands at stage .*, which this recipe does not have"):
        folder.check_checkpoint(saved, run, identity(run))


def test_result_changing_diff_names_what_differs(run):
    assert result_changing_diff(run, run) == ""
    assert "seed 0, not 1" in result_changing_diff(run, dataclasses.replace(run, seed=1))
    subset = dataclasses.replace(run, speed=dataclasses.replace(run.speed, drop_path="subset"))
    assert result_changing_diff(run, subset) == "speed.drop_path exact, not subset"
    assert "first_32" in result_changing_diff(run, dataclasses.replace(run, stages=run.stages[:1]))


@pytest.mark.parametrize("batch", [0, 2])
def test_the_order_within_an_epoch_stays(run, batch):
    """At an epoch's border it may change."""
    folder, state = RunFolder(run), trained(run)
    folder.prepare(run, {})
    state.step_in_epoch = batch
    assert folder.save(state.state_dict(), {}, is_main=True) == ""
    other = RunFolder(dataclasses.replace(run, data=dataclasses.replace(run.data, shuffle_pages=7)))
    saved = folder.load()
    folder.check_order(saved)
    if batch:
        with pytest.raises(UserError, match=r"data.shuffle_pages .*, not 7: that changes the order within the epoch"):
            other.check_order(saved)
    else:
        other.check_order(saved)
