"""Where the points of the curves lie."""

import json

import numpy as np
import pytest

from report import curves
from report.collect import collect, deviations


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


def test_values_that_no_axis_can_show_are_left_out(make_run, tmp_path):
    folder = make_run(tmp_path / "made")
    text = (folder / "log.jsonl").read_text().replace('"grad_norm": 0.5', '"grad_norm": 1e300')
    (folder / "log.jsonl").write_text(text)
    assert "grad_norm" not in {panel.key for panel in curves.panels(collect(folder))}


def test_raw_and_averaged_weights_are_two_curves_over_all_epochs(make_run, tmp_path):
    """Two stages of four epochs; the averaged weights' line does not go on from one stage into the next."""
    facts = collect(make_run(tmp_path / "run", epochs=8, overrides={"stage.epochs": "4"}))
    raw, averaged = {panel.key: panel for panel in curves.panels(facts)}["top1"].lines
    assert (raw.label, averaged.label) == ("raw weights", "averaged weights (EMA)")
    for line, top1 in ((raw, 61.79), (averaged, 65.43)):
        assert [[x for x, _ in stroke] for stroke in line.strokes] == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert {round(y, 6) for _, y in line.points} == {top1}


def test_a_published_end_is_a_point_at_the_end(make_run, tmp_path):
    facts = collect(make_run(tmp_path / "made", cfg="recipes/fast/rn50_ffcv_16ep.yaml", epochs=16, val_images=50_000))
    assert [(stage, found.epoch, found.reference) for _, stage, found in deviations(facts)] == [("train", 16, 73.8)]
    (line,) = (line for line in curves.panels(facts)[0].lines if line.kind == "published")
    assert (line.label, line.points) == ("published, fast/rn50_ffcv_16ep", [(16, 73.8)])
    running = collect(
        make_run(tmp_path / "running", cfg="recipes/fast/rn50_ffcv_16ep.yaml", epochs=15, val_images=50_000)
    )
    assert deviations(running) == []
