"""The command: numbers that add up, tables, rows."""

from bench import report
from bench.step import __main__ as command
from bench.step.tasks import QUICK


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
