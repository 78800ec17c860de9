"""The record of a run: what a row holds, across restarts; where it leaves the published curve."""

import json
import re

import pytest

from config.recipe import BASE_RECIPE, load_recipe
from training.logging import records, run_log
from training.planning.plan import StagePlan
from training.saving.run_folder import RunFolder


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """begin(step, batch=batch): a log of vit_s_800ep as a process that starts after `step` opens it; and its clock."""
    now = [500.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    overrides = {"log.out": str(tmp_path), "log.name": "run", "log.tensorboard": "false"}
    run = load_recipe(BASE_RECIPE.parent / "vit_s_800ep.yaml", overrides)
    folder = RunFolder(run)
    folder.prepare(run, {})
    plans = [StagePlan(stage.name, 10, (1.0,) * stage.epochs, 1_281_167, 50_000, 1000) for stage in run.stages]

    def begin(step=None, first=True, batch=0):
        saved = None if step is None else {"step": step, "step_in_epoch": batch}
        return run_log.RunLog(folder.path, run, plans, is_main=first, world=3, saved=saved), now

    begin.folder, begin.stage = folder, run.stages[0]
    return begin


def epoch(number, top1):
    return {"kind": "epoch", "stage": "pretrain_224", "epoch": number, "epochs": 800, "step": 10 * number, "lr": 0.004,
            "resolution": 224, "loss": 1.0, "grad_norm": 1.0, "images_per_s": 7.0, "wait": 0.0, "seconds": 1.0,
            "top1": top1 / 100, "top5": 0.9, "val_loss": 1.0, "val_images": 50_000}  # fmt: skip


def test_time_spent_goes_on_after_a_restart_and_counts_what_was_lost(begin):
    log, now = begin()
    log.begin_stage(begin.stage, done=0)
    for number in (1, 2, 3):
        now[0] += 100
        log.row(**epoch(number, 50.0))
    log.close()
    now[0] += 10_000  # nobody pays for the time between
    log, _ = begin(step=20)  # the checkpoint is from before the third epoch
    now[0] += 50
    log.begin_stage(begin.stage, done=20)
    log.row(**epoch(3, 50.0))
    log.close()
    rows = records.read_rows(begin.folder.path / "log.jsonl")
    assert [(row["epoch"], row["wall"]) for row in rows] == [(1, 100), (2, 200), (3, 350)]
    assert all(row["at"] > 1_700_000_000 for row in rows)


def test_leaving_the_published_curve_is_said_once(begin, capsys):
    """Official: 53.628 after 50 epochs, 55.828 after 55, 57.12 after 60, 58.504 after 65; 60.98 after 80."""
    log, _ = begin()
    log.begin_stage(begin.stage, done=0)
    for number, top1 in ((50, 53.0), (55, 50.0), (60, 51.0), (65, 58.0), (80, 58.5)):
        log.row(**epoch(number, top1))
    log.close()
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    warnings = [row for row in records.read_rows(begin.folder.path / "log.jsonl") if row["kind"] == "warning"]
    assert [(row["epoch"], row["step"]) for row in warnings] == [(55, 550), (80, 800)]
    assert "50.00 % after epoch 55, 5.83 points below the published 55.83 %" in warnings[0]["message"]
    assert said.count("warning: stage pretrain_224 is off the curve of vit_s_800ep") == 2


def test_it_is_not_said_again_after_a_restart(begin):
    for step, numbers in ((None, (50, 55)), (550, (60,)), (600, (65, 80))):
        log, _ = begin(step)
        log.begin_stage(begin.stage, done=step or 0)
        for number in numbers:
            log.row(**epoch(number, {50: 53.0, 55: 50.0, 60: 51.0, 65: 58.0, 80: 58.5}[number]))
        log.close()
    warnings = [row for row in records.read_rows(begin.folder.path / "log.jsonl") if row["kind"] == "warning"]
    assert [row["epoch"] for row in warnings] == [55, 80]


@pytest.mark.parametrize("batch, kept", [(10, [(1, "epoch"), (2, "step")]),
                                         (0, [(1, "epoch"), (2, "step"), (2, "epoch"), (2, "warning")])])  # fmt: skip
def test_an_epoch_that_a_checkpoint_is_within_has_no_row_yet(batch, kept, begin):
    """A checkpoint of the epoch's last step may be from before the epoch's end, or from after it."""
    log, _ = begin()
    for number in (1, 2):
        if number == 2:
            log.row(**epoch(2, 50.0) | {"kind": "step"})
        log.row(**epoch(number, 50.0))
    log.warn("x", stage="pretrain_224", epoch=2, step=20)
    log.close()
    begin(20, batch=batch)[0].close()
    assert [(row["epoch"], row["kind"]) for row in records.read_rows(begin.folder.path / "log.jsonl")] == kept


def test_a_small_number_keeps_its_digits(begin):
    log, _ = begin()
    log.row(**epoch(1, 50.0) | {"lr": 1.234567e-5, "loss": float("nan"), "images_per_s": 12345.678})
    log.close()
    row = records.read_rows(begin.folder.path / "log.jsonl")[0]
    assert (row["lr"], row["images_per_s"], row["loss"] != row["loss"]) == (1.234567e-5, 12345.68, True)


def test_what_lies_beside_the_rows(begin):
    begin()[0].close()
    about = json.loads((begin.folder.path / "environment.json").read_text())
    assert about["ranks"] == 3
    assert about["devices"][0]
    assert about["packages"]["torch"]
    plan = json.loads((begin.folder.path / "plan.json").read_text())
    assert [(part["stage"], part["steps_per_epoch"], len(part["work"])) for part in plan] == [
        ("pretrain_224", 10, 800), ("finetune_384", 10, 20)]  # fmt: skip


def test_other_ranks_write_nothing(begin, capsys):
    log, _ = begin(first=False)
    log.begin_stage(begin.stage, done=0)
    log.row(**epoch(1, 50.0))
    log.say("x")
    log.close()
    assert not (begin.folder.path / "log.jsonl").exists()
    assert capsys.readouterr().out == ""
