"""The doctor as users call it."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.doctor import __main__ as command
from tools.doctor import questions

ROOT = Path(__file__).resolve().parents[3]
DEMO = str(ROOT / "recipes" / "demo.yaml")


def test_where_nothing_is_wrong(stand_ins, capsys):
    assert command.main([]) == 0
    said = capsys.readouterr().out
    assert "this machine can train" in said
    assert [line.split()[0] for line in said.splitlines() if line.split()[1:2] == ["torch"]] == ["ok"]
    assert not any(line.endswith(" ") for line in said.splitlines())


def test_it_starts_without_any_package(stand_ins):
    """-S hides everything that pip installed, rich and PyYAML too."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tools.doctor", "--cfg", DEMO], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search("fault: other packages: .*fastargs missing", done.stdout)
    assert "warning: recipe: could not be looked at" in done.stdout


def test_the_real_libraries_and_a_damaged_file(jpg_beton, tmp_path, capsys, monkeypatch):
    """The questions are asked in this process, which has imported everything already."""

    def answers(code, names):
        names = list(names)
        monkeypatch.setattr(sys, "argv", ["-c", *names])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, {})
        lines = [line.removeprefix(questions.MARK) for line in said.getvalue().splitlines()]
        return dict(zip(names, map(json.loads, lines), strict=True))

    monkeypatch.setattr(questions, "answers", answers)
    shutil.copy(jpg_beton, tmp_path / "half.beton")
    with (tmp_path / "half.beton").open("r+b") as file:
        file.truncate(jpg_beton.stat().st_size // 2)
    assert command.main([str(jpg_beton), str(tmp_path / "half.beton"), str(tmp_path / "none.beton")]) == 1
    said = " ".join(capsys.readouterr().out.split("\n\n"))
    assert said.count("fault: ") == 2
    assert "half.beton: " in said and "truncated or damaged" in said
    assert "none.beton: no such file" in said
    assert "96 images" in said and "5 classes" in said
