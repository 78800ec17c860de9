"""The command: numbers that add up, tables, rows."""

import json

import pytest
import torch

from bench import report
from bench.step import __main__ as command
from bench.step import views
from bench.step.baselines import QUICK, TASKS


def test_the_command_prints_tables_and_writes_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK", QUICK._replace(batch=4, drop_path=0.45))
    command.main(["--quick", "--json", str(tmp_path / "x.json"), "--device", "cpu"])
    machine, rows = report.read_json(tmp_path / "x.json")
    assert (machine["device"], machine["cores"] > 0) == ("CPU", True)
    found = {(row["task"], row["name"]): row for row in rows}
    for who in ("ours", "exact", "reference"):
        assert found["quick", who]["unit"] == "images/s"
        assert found["quick ratio", who]["unit"] == "times ours"
        assert 0 < found["quick share", who]["value"] < 200
    assert found["quick ratio", "ours"]["value"] == 1
    assert {"ours", "timm", "timm-foreach", "timm-loop"} == {name for task, name in found if task.startswith("LAMB")}
    printed = capsys.readouterr().out
    assert "| ours " in printed
    assert "quick ceiling: matmul" in printed


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        command.main(["--device=cuda"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "there is no GPU here" in said


def test_the_table_of_all_results_has_what_was_measured(tmp_path, monkeypatch, capsys):
    rows = [report.row("S112", "ours", [20.0], "images/s"), report.row("S112", "reference", [10.0], "images/s"),
            report.row("S112 ratio", "reference", [2.0], "times ours"), report.row("LAMB small", "ours", [4.0], "ms"),
            report.row("LAMB small", "timm", [12.0], "ms")]  # fmt: skip
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.write_json(tmp_path / "cpu.json", {"device": "CPU", "cores": 2, "cpu": "X"}, rows)
    report.write_json(tmp_path / "gpu.json", {"device": "G"}, [report.row("S224", "ours", [900.0], "images/s")])
    (tmp_path / "other.json").write_text(json.dumps({"machine": {"cpu": "Y"}, "rows": []}))
    table = views.summary(views.kept_results())
    assert table.header[1:] == ["2 cores of X", "G"]
    cells = {line[0]: line[1:] for line in table.lines}
    assert cells[f"{TASKS['S112'].title}: reference"] == ["10 (2.00x)", "-"]
    assert cells[f"{TASKS['S224'].title}: ours"] == ["-", "900"]
    assert cells["LAMB, ViT-S/16: timm's time / ours"] == ["3.0x", "-"]
    assert len(cells) == 4
    (tmp_path / "x.md").write_text(f"<!-- {command.MARKER} -->\n<!-- /{command.MARKER} -->\n")
    command.main(["--table", f"--markdown={tmp_path / 'x.md'}"])
    assert "10 (2.00x)" in (tmp_path / "x.md").read_text()
