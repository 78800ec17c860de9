"""Turns: who cannot take part is left out of all of them."""

from types import SimpleNamespace

import torch

from bench.step import turns
from bench.step.tasks import QUICK

TINY = QUICK._replace(batch=4)


def measured(monkeypatch, fails):
    """Rows of stand-ins for ours and the reference, of which those in `fails` run out of memory in their first step."""

    class Stand:
        def __init__(self, who, task, *, mark, **_):
            self.who, self.mark = who, mark

        def prepare(self, *batch):
            return batch

        def __call__(self, images, labels):
            if self.who in fails:
                raise torch.OutOfMemoryError("no more")
            self.mark("data")

    monkeypatch.setattr(turns, "contender", Stand)
    options = SimpleNamespace(only=["ours", "reference"], compile=False, memory=False, repeats=2, steps=1)
    return turns.measure_task("tiny", TINY, options, torch.device("cpu"))


def test_one_that_runs_out_of_memory_takes_no_turn(monkeypatch, capsys):
    rows = measured(monkeypatch, {"reference"})
    assert {row["name"] for row in rows} == {"ours", "matmul"}
    assert "tiny: reference is left out: no more" in capsys.readouterr().err


def test_nobody_is_left(monkeypatch):
    assert measured(monkeypatch, {"ours", "reference"}) == []
