"""The short version of the campaign: a part of each group's cases, and that failures would be told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.faults import __main__ as faults
from bench.faults import betons, campaign, damage
from bench.faults.campaign import OURS, STOCK, Fault, Figure

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_the_short_campaign_finds_nothing(tmp_path):
    """As users run it, in a process that can fork. What is left out here has tests of its own, or takes too long."""
    command = [sys.executable, "-m", "bench.faults", "--quick", "--json", tmp_path / "faults.json",
               "--only", "sources", "betons", "saving", "recipes", "hostile", "removals"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    counted = {(row["task"], row["name"]): row["value"] for row in rows}
    for group in ("sources", "betons", "saving", "recipes", "hostile", "removals"):
        assert counted[group, "ours: detected"] > 0
        assert not any(counted[group, f"ours: {outcome}"] for outcome in campaign.FAILURES)


def test_what_a_case_does_is_judged():
    """A wrong value, a traceback, a signal, a refusal and an endless wait, by their names."""

    def ends(function, *arguments, limit=30):
        return campaign.judged(campaign.forked(function, *arguments, limit=limit), right=lambda value: value == 1)[0]

    assert ends(int, "1") == "harmless"
    assert ends(int, "2") == "silent"
    assert ends(int, "no number") == "crash"
    assert ends(sys.exit, 2) == "detected"
    assert ends(sys.exit, 1) == "crash"
    assert ends(_kill_oneself) == "crash"
    assert ends(_wait_for_ever, limit=0.5) == "hang"


def _kill_oneself():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_ever():
    import time

    time.sleep(100)


def test_every_damage_damages(tmp_path):
    """Each changes the file, and by a flip exactly one bit."""
    good = betons.write(tmp_path).read_bytes()
    assert len(damage.BY_HAND) + len(betons.WHILE_OPEN) == 65
    for name in damage.BY_HAND:
        assert damage.by_hand(damage.DatasetInfo(good), name) != good, name
    file = damage.DatasetInfo(good)
    assert sum(betons.FLIPS.values()) >= 500
    for region, (begin, end) in file.regions().items():
        places = damage.flips(file, region, 50)
        assert len(set(places)) == 50
        for bit in places:
            assert 8 * begin <= bit < 8 * end
        changed = damage.flipped(file, places[0])
        assert sum((a ^ b).bit_count() for a, b in zip(good, changed, strict=True)) == 1


def test_a_failure_is_in_the_table_and_in_the_status(tmp_path, monkeypatch, capsys):
    def run(folder, *, quick):
        assert folder.is_dir()
        assert quick
        return [Fault(OURS, "a", "detected"), Fault(OURS, "b", "silent", "other pixels"), Fault(STOCK, "a", "hang"),
                Figure(OURS, "growth of memory", 1.5, "MiB", 50)]  # fmt: skip

    monkeypatch.setitem(faults.GROUPS, "betons", faults.GROUPS["betons"]._replace(run=run))
    monkeypatch.setattr(faults, "warm_up", lambda quick: None)
    table = tmp_path / "table.md"
    given = ["--quick", "--only=betons", f"--json={tmp_path / 'x.json'}", f"--markdown={table}"]
    with pytest.raises(SystemExit) as ended:
        faults.main(given)
    assert ended.value.code == 1
    assert "1 failures of ours" in capsys.readouterr().err
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines() if "|" in line]
    now = lines_measured(tmp_path / "x.json")
    assert [faults.GROUPS["betons"].goal, "ours", "2", "1", "0", "1", "0", "0", "0", now] in lines
    assert ["", "stock", "1", "0", "0", "0", "1", "0", "0", ""] in lines
    assert ["ours: growth of memory", "1.5 MiB"] in lines


def lines_measured(path):
    return json.loads(path.read_text())["rows"][0]["measured"]


def test_a_group_that_is_measured_again_replaces_its_own_rows(tmp_path):
    """The file may be one from before rows said when they were measured."""
    old = [{"task": task, "name": "ours: detected", "value": 1, "unit": "faults"} for task in ("writer", "hostile")]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"machine": {"date": "then"}, "rows": old}))
    new = {"task": "writer", "name": "ours: detected", "value": 7, "unit": "faults", "measured": "now"}
    rows = faults.merged(path, [new])
    found = [(row["task"], row["value"], row["measured"]) for row in rows]
    assert found == [("writer", 7, "now"), ("hostile", 1, "then")]
