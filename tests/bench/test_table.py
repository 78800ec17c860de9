"""The README's table of the training step."""

import json

from bench import report, table
from bench.step.tasks import TASKS


def test_the_table_has_what_was_measured_and_says_what_was_not(tmp_path, monkeypatch):
    rows = [report.row("S112", "ours", [20.0], "images/s"), report.row("S112", "reference", [10.0], "images/s"),
            report.row("S112 ratio", "reference", [2.0], "times ours"), report.row("LAMB small", "ours", [4.0], "ms"),
            report.row("LAMB small", "timm", [12.0], "ms")]  # fmt: skip
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    report.write_json(tmp_path / "cpu.json", {"device": "CPU", "cores": 2, "cpu": "X"}, rows)
    (tmp_path / "other.json").write_text(json.dumps({"machine": {"cpu": "Y"}, "rows": []}))
    grid = table.grid(table.results())
    assert grid.header[1:] == ["2 cores of X", "GPU"]
    cells = {line[0]: line[1:] for line in grid.lines}
    assert cells[f"{TASKS['S112'].title}: reference"] == ["10 (2.00x)", "not measured"]
    assert cells[f"{TASKS['B192'].title}: ours"] == ["not measured", "not measured"]
    assert cells["LAMB, ViT-S/16: timm's time / ours"] == ["3.0x", "not measured"]
