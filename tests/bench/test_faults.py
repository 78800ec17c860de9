"""The short version of the fault suite: a part of each group's cases, and that failures would be told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.faults import __main__ as faults
from bench.faults import betons, damage, suite
from bench.faults.suite import Fault, Figure, finished, judged

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_the_short_suite_finds_nothing(tmp_path):
    """As users run it. What is left out here has tests of its own, or takes too long."""
    groups = ("betons", "removals")
    command = [sys.executable, "-m", "bench.faults", "--quick", "--json", tmp_path / "faults.json",
               f"--only={','.join(groups)}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    counted = {(row["task"], row["name"]): row["value"] for row in rows}
    for group in groups:
        assert counted[group, "detected"] > 0
        assert not any(counted[group, outcome] for outcome in suite.FAILURES)


def test_what_a_case_does_is_judged(fork_server):
    """A wrong value, a traceback, a signal, a refusal and an endless wait, by their names."""

    def ends(function, *arguments, limit=30):
        ended = finished(fork_server.start((function, *arguments)), limit)
        return judged(ended, right=lambda value: value == 1)[0]

    assert ends(int, "1") == "harmless"
    assert ends(int, "2") == "silent"
    assert ends(int, "no number") == "crash"
    assert ends(exec, "raise SystemExit(2)") == "detected"
    assert ends(exec, "raise SystemExit(1)") == "crash"
    assert ends(os.abort) == "crash"
    assert ends(time.sleep, 100, limit=0.5) == "hang"


def test_what_a_case_has_started_ends_with_it(fork_server):
    """Also when it is the limit that ends it."""
    process = fork_server.start((os.system, "sleep 100"))
    assert finished(process, 0.5).status is None
    deadline = time.monotonic() + 20  # what is killed stays in its group until it is reaped
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_every_damage_damages(tmp_path, fork_server):
    """Each changes the file, and by a flip exactly one bit."""
    good = betons.write(tmp_path, fork_server).read_bytes()
    for name in damage.BY_HAND:
        assert damage.by_hand(damage.File(good), name) != good, name
    file = damage.File(good)
    assert sum(betons.FLIPS.values()) >= 500
    for region, (begin, end) in file.regions().items():
        places = damage.flips(file, region, 50)
        assert len(set(places)) == 50
        for bit in places:
            assert 8 * begin <= bit < 8 * end
        changed = damage.flipped(file, places[0])
        assert sum((a ^ b).bit_count() for a, b in zip(good, changed, strict=True)) == 1


def test_a_failure_is_in_the_table_and_in_the_status(tmp_path, monkeypatch, capsys):
    def run(folder, server, *, quick):
        assert folder.is_dir()
        assert quick
        return [Fault("a", "detected"), Fault("b", "silent", "other pixels"), Figure("growth of memory", 1.5, "MiB")]

    monkeypatch.setitem(faults.GROUPS, "betons", faults.GROUPS["betons"]._replace(run=run))
    table = tmp_path / "table.md"
    table.write_text(f"<!-- {faults.MARKER} -->\n<!-- /{faults.MARKER} -->\n")
    given = ["--quick", "--only=betons", f"--json={tmp_path / 'x.json'}", f"--markdown={table}"]
    with pytest.raises(SystemExit) as ended:
        faults.main(given)
    assert ended.value.code == 1
    assert "1 failures" in capsys.readouterr().err
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines() if "|" in line]
    now = json.loads((tmp_path / "x.json").read_text())["rows"][0]["measured"]
    assert [faults.GROUPS["betons"].goal, "2", "1", "0", "1", "0", "0", "0", now] in lines
    assert ["ours", "growth of memory", "1.5 MiB"] in lines


def test_stock_ffcv_as_it_was_measured_stands_beside(tmp_path):
    """Every group that was measured is in its table, and so are the sums."""
    _, rows = faults.report.read_json(faults.STOCK)
    assert {row["task"] for row in rows} == faults.OF_STOCK.keys()
    table = faults.grids([], rows)[1]
    assert len(table.lines) == len(faults.OF_STOCK) + 1
    assert table.lines[-1][:2] == ["all", "565"]


def test_a_group_that_is_measured_again_replaces_its_own_rows(tmp_path):
    old = [{"task": task, "name": "detected", "value": 1, "unit": "faults", "measured": "then"}
           for task in ("writer", "kills", "a group of before")]  # fmt: skip
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"machine": {"date": "then"}, "rows": old}))
    new = {"task": "writer", "name": "detected", "value": 7, "unit": "faults", "measured": "now"}
    rows = faults.merged(path, [new])
    found = [(row["task"], row["value"], row["measured"]) for row in rows]
    assert found == [("writer", 7, "now"), ("kills", 1, "then")]
