"""Runs side by side."""

import pytest

from report import __main__ as command
from report import compare
from report.collect import collect


@pytest.fixture
def runs(make_run, tmp_path):
    one = make_run(tmp_path / "one", top1=lambda epoch: 50.0)
    other = make_run(tmp_path / "other", epochs=1, top1=lambda epoch: 40.0,
                     overrides={"stage.lr": "0.5", "seed": "7", "log.every": "9"}.items())  # fmt: skip
    return one, other


def test_the_keys_that_differ_are_named(runs):
    facts = [collect(folder) for folder in runs]
    assert compare.differences(facts) == [
        ("key", "one", "other"), ("seed", "0", "7"), ("stage 1: lr", "0.003", "0.5"), ("stage 2: lr", "0.0001", "0.5"),
    ]  # fmt: skip
    assert compare.differences(facts[:1] * 2) == []


def test_runs_with_other_stages_are_compared_as_far_as_both_have_them(runs, make_run, tmp_path):
    long = make_run(tmp_path / "long", cfg="recipes/demo.yaml", epochs=3)
    rows = compare.differences([collect(runs[0]), collect(long)])
    named = {row[0]: row[1:] for row in rows}
    assert named["stages"] == ("2", "3")
    assert named["stage 2: name"] == ("second_48", "pretrain_80")
    assert not any(name.startswith("stage 3") for name in named)


def test_console_and_page(runs, tmp_path, capsys, browser):
    command.main([*map(str, runs), "--out", str(tmp_path / "compare.html")])
    said = capsys.readouterr().out
    lines = [line.replace(" ", "") for line in said.splitlines()]
    assert any(line.startswith("|one|2/2|50.00|") for line in lines)
    assert any(line.startswith("|other|1/2|40.00|") for line in lines)
    assert "stage 1: lr" in said
    dom, console, hosts = browser.load(tmp_path / "compare.html")
    assert (console, hosts) == ([], set())
    for words in ("50.00", "40.00", "stage 2: lr", "2 runs"):
        assert words in dom
    for figure in dom.split("<figure>")[1:]:
        assert "stroke: var(--main)" in figure
        assert "stroke: var(--second)" in figure


def test_each_run_has_a_line_in_each_chart(runs):
    facts = [collect(folder) for folder in runs]
    made = compare.overlaid(facts)
    assert len(made) == len(compare.SHOWN)
    assert made[0].keys == [("run1", "one", "50.00"), ("run2", "other", "40.00")]
