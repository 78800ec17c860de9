"""Damaged files in a run's folder: the run goes on, and its report is made of what is left."""

import json
import shutil

import pytest

from config.recipe import load_recipe
from report import page
from report.collect import collect
from training.logging import records
from training.logging.run_log import RunLog
from training.planning.plan import read_plan

ROW = {"kind": "step", "stage": "first_32", "epoch": 0, "step": 3, "lr": 0.1, "loss": 1.0, "grad_norm": 1.0,
       "images_per_s": 9.0, "wait": 0.0, "seconds": 1.0, "bad_steps": 0, "wall": 9.0, "at": 1_800_000_009}  # fmt: skip
EVALUATED = {"top1": 0.5, "top5": 0.6, "val_loss": 1.0, "val_images": 403}


def row(**changes):
    return json.dumps(ROW | changes).encode()


def without(name):
    return json.dumps({key: value for key, value in ROW.items() if key != name}).encode()


LINES = {  # no rows: each is put between the rows of a log
    "an odd byte": row(stage="first_3?").replace(b"?", b"\xff"),
    "a zero byte": row().replace(b"first", b"fir\0t"),
    "zeros": bytes(512),
    "noise": bytes(range(11, 256)),
    "half a row": row()[:70],
    "two rows": row() + row(),
    "a row in UTF-16": row().decode().encode("utf-16"),
    "null": b"null",
    "a list": b"[]",
    "a number": b"3",
    "a text": b'"text"',
    "an empty object": b"{}",
    "deep nesting": b"[" * 200_000,
    "a number of 5000 digits": row(step="?").replace(b'"?"', b"9" * 5000),
    "1e400": row(lr="?").replace(b'"?"', b"1e400"),
    "no kind": without("kind"),
    "another kind": row(kind="stage"),
    "a kind that is a list": row(kind=[]),
    "no stage": without("stage"),
    "a stage that is a number": row(stage=1),
    "no step": without("step"),
    "a step that is text": row(step="3"),
    "a step below 0": row(step=-3),
    "a step beyond all": row(step=10**17),
    "an epoch that is true": row(epoch=True),
    "no loss": without("loss"),
    "a loss that is text": row(loss="low"),
    "a loss that is null": row(loss=None),
    "a top-1 alone": row(top1=0.5),
    "a top-1 of 400": row(**EVALUATED | {"top1": 400}),
    "a wait without end": row(wait=float("inf")),
    "a time beyond the calendar": row(at=10**18),
    "a time below 0": row(wall=-1e9),
    "a message that is a list": row(kind="warning", message=[]),
    "half a character": row(kind="warning", message="\ud800"),
}
OF_OTHERS = {  # well-formed, and yet not of this run: left out of its report
    "another run's stage": row(stage="else"),
    "an epoch beyond the stage": row(epoch=10**9),
}
HARMLESS = {
    "an empty line": b"",
    "a line end of Windows": row() + b"\r",
    "a loss beyond all": row(loss=1.7e308, grad_norm=-1.7e308),
    "a row twice": row() + b"\n" + row(),
    "a step out of order": row(step=1),
}
PLANS = {
    "empty": b"", "cut": b'[{"stage": "first_32", "st', "noise": bytes(range(256)), "an object": b"{}",
    "null": b"null", "no fields": b"[{}]", "numbers": b"[1, 2]", "deep": b"[" * 200_000,
    "no steps": {"steps_per_epoch": 0}, "text": {"steps_per_epoch": "5"}, "no work": {"work": []},
    "work of 0": {"work": [0.0]}, "too many epochs": {"work": [1.0] * 9}, "another stage": {"stage": "else"},
}  # fmt: skip
ENVIRONMENTS = {
    "empty": b"", "cut": b'{"commit": "abc', "noise": bytes(range(256)), "a list": b"[]", "deep": b"[" * 200_000,
    "numbers": b'{"commit": 1, "devices": 3, "packages": 4, "ranks": "x"}',
    "odd members": b'{"devices": [{}, 1], "packages": {"torch": []}, "ranks": 0, "cuda": "13"}',
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(make_run, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def goes_on(folder):
    """A report, and a process that goes on after step 7 and logs one step more; the rows that the log then has."""
    page.render(collect(folder))
    recipe, plans = load_recipe(folder / "recipe.yaml"), read_plan(folder / "plan.json")
    log = RunLog(folder, recipe, plans, is_main=True, world=1, saved={"step": 7, "step_in_epoch": 2})
    log.row(**ROW | {"stage": "second_48", "step": 8})
    log.close()
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(map(records.is_row, rows))
    assert rows[-1]["step"] == 8
    return rows


@pytest.mark.parametrize("name", [*LINES, *OF_OTHERS, *HARMLESS])
def test_a_line_of_the_log(name, folder, capsys):
    path = folder / "log.jsonl"
    lines = path.read_bytes().split(b"\n")
    damage = (LINES | OF_OTHERS | HARMLESS)[name]
    path.write_bytes(b"\n".join([*lines[:3], damage, *lines[3:]]))
    good = [json.loads(line) for line in lines if line]
    facts = collect(folder)
    assert facts.damaged_lines == (name not in HARMLESS)
    if name not in HARMLESS:
        assert [*facts.epochs, *facts.steps] == [row for k in ("epoch", "step") for row in good if row["kind"] == k]
    rows = goes_on(folder)
    assert [row for row in good if row["step"] <= 7] == [row for row in rows[:-1] if row in good][: len(good)]
    assert ("log.jsonl: 1 damaged lines are left out" in capsys.readouterr().out.replace("\n", " ")) == (name in LINES)


@pytest.mark.parametrize("content", [b"", b"\n\n", bytes(4096), b"\xff" * 99, b"{" * 100_000])
def test_a_whole_log(content, folder):
    (folder / "log.jsonl").write_bytes(content)
    assert len(goes_on(folder)) == 1


def test_a_log_that_was_cut(folder, capsys):
    """By a kill, which happens and is no damage; and at its beginning, which is."""
    path = folder / "log.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    assert collect(folder).damaged_lines == 0
    path.write_bytes(content[40:])
    assert collect(folder).damaged_lines == 1
    goes_on(folder)
    assert "1 damaged lines" in capsys.readouterr().out


@pytest.mark.parametrize("name", PLANS)
def test_a_plan(name, folder):
    path, damage = folder / "plan.json", PLANS[name]
    if isinstance(damage, dict):
        first, *others = json.loads(path.read_bytes())
        damage = json.dumps([first | damage, *others]).encode()
    path.write_bytes(damage)
    assert [plan.stage for plan in collect(folder).plans] in ([], ["second_48"])
    goes_on(folder)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment(name, folder):
    (folder / "environment.json").write_bytes(ENVIRONMENTS[name])
    goes_on(folder)
    assert collect(folder).environment["ranks"] == 1, "written anew"
