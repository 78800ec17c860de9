"""Where the points of the curves lie."""

import json

import numpy as np
import pytest

from report import charts, curves
from report.collect import collect


def test_stages_follow_one_another(make_run, tmp_path):
    """45 epochs of the demo: 40 of its first stage, 5 of its second; five steps each."""
    facts = collect(make_run(tmp_path / "demo", cfg="recipes/demo.yaml", epochs=45, top1=lambda epoch: 2.0 * epoch))
    panels = {panel.key: panel for panel in curves.panels(facts)}
    assert list(panels) == ["top1", "loss", "val_loss", "lr", "resolution", "images_per_s", "wait", "grad_norm"]
    first, second, *_ = panels["top1"].lines[0].strokes
    assert first == [(epoch, pytest.approx(2.0 * epoch)) for epoch in range(1, 41)]
    assert second == [(40 + epoch, pytest.approx(2.0 * epoch)) for epoch in range(1, 6)]
    faint = panels["loss"].lines[0]
    assert faint.kind == "faint"
    x, y = np.array(faint.points).T
    rows = [json.loads(line) for line in (facts.path / "log.jsonl").read_text().splitlines()]
    steps = np.array([row["step"] for row in rows if row["kind"] == "step"])
    size = len(steps) // len(x)
    expected = steps.reshape(-1, size).mean(1)[: len(x)] / 5
    assert x[:20] == pytest.approx(expected[:20])
    assert y.max() <= 3
    assert panels["resolution"].lines[0].points[-2:] == [(44, 80), (45, 80)]
    assert panels["wait"].lines[-1].points[0][1] == pytest.approx(1.23)
    assert [(border.stage, border.start, border.end) for border in curves.borders(facts)] == [
        ("pretrain_48", 0, 40), ("pretrain_80", 40, 56)]  # fmt: skip


def test_values_that_are_no_numbers_are_left_out(make_run, tmp_path):
    folder = make_run(tmp_path / "made")
    text = (folder / "log.jsonl").read_text().replace('"loss": 0.7531', '"loss": NaN', 1)
    (folder / "log.jsonl").write_text(text)
    loss = next(panel for panel in curves.panels(collect(folder)) if panel.key == "loss")
    assert loss.lines[-1].points == [(2, 0.7531)]


def test_a_path_is_where_the_axes_say():
    """A straight line from corner to corner, against the places of the ticks."""
    line = curves.Line("", "main", [[(0.0, 0.0), (10.0, 50.0)]])
    made = charts.chart(curves.Panel("loss", "x", [line], ".1f", from_zero=True), (0.0, 10.0), [])
    (x0, y0), (x1, y1) = (map(float, place.split()) for place in made.traces[0].path[1:].split("L"))
    assert (x0, x1, y0) == (0, 1000, 1000)
    for tick in made.y:
        assert 1000 - 10 * tick.place == pytest.approx(1000 + (y1 - 1000) * float(tick.text) / 50, abs=0.1)
    assert [tick.text for tick in made.x] == ["0", "2", "4", "6", "8", "10"]
    assert made.traces[0].last == "50.0"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0, 1.0], ["0", "0.5", "1.0"]),
        ([0, 60_000], ["0", "20k", "40k", "60k"]),
        ([0, 3e-5], ["0", "1e-5", "2e-5", "3e-5"]),
        ([0, 2500], ["0", "1,000", "2,000"]),
    ],
)
def test_ticks_have_the_digits_they_need(values, texts):
    line = curves.Line("", "main", [list(enumerate(values))])
    made = charts.chart(curves.Panel("loss", "x", [line], "g", from_zero=True), (0, 1), [])
    assert [tick.text for tick in made.y] == texts


def test_raw_and_averaged_weights_are_two_curves_over_all_epochs(make_run, tmp_path):
    """Two stages of four epochs; the averaged weights' line does not go on from one stage into the next."""
    facts = collect(make_run(tmp_path / "run", epochs=8, overrides={"stage.epochs": "4"}))
    raw, averaged = {panel.key: panel for panel in curves.panels(facts)}["top1"].lines
    assert (raw.label, averaged.label) == ("raw weights", "averaged weights (EMA)")
    for line, top1 in ((raw, 61.79), (averaged, 65.43)):
        assert [[x for x, _ in stroke] for stroke in line.strokes] == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert {round(y, 6) for _, y in line.points} == {top1}
