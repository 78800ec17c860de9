"""What is seen on a terminal and in a file."""

import re
import subprocess
import sys

import pytest

from training.logging import console
from training.planning.plan import StagePlan

PLANS = [
    StagePlan("pretrain_32", 10, (100.0,) * 3, 640, 96, 5),
    StagePlan("finetune_64", 10, (400.0,) * 2, 640, 96, 5),
]
ROW = {"loss": 1.23456, "images_per_s": 4321.0, "wait": 0.05}


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_run_goes_on_when_nobody_reads_its_output():
    code = "from training.logging.console import ConsoleProgress\nsay = ConsoleProgress([], quiet=False).say\n"
    code += "for line in range(20_000): say(str(line))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == "nobody reads the output any more; the run goes on, and log.jsonl has it all\n"
    assert process.wait() == 0
    process.stderr.close()


def test_without_a_terminal_lines_come_once_a_minute(clock, capsys):
    """Ten steps of 20 s each: lines after 60, 120 and 180 s; the times left by hand."""
    progress = console.ConsoleProgress(PLANS, quiet=False)
    progress.begin_stage("pretrain_32", 0)
    for _ in range(10):
        clock[0] += 20
        progress.advance(1, 1, ROW)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)
    expected = ("pretrain_32", "epoch 1/3", "loss 1.2346", "4,321 images/s", "waited 5 %", "step 3/10")
    assert all(words in lines[0] for words in expected)
    left = 20 * 27  # 27 steps more; then 20 steps of 4 times the work
    assert lines[0].endswith(f"left: stage {left // 60} min, run {(left + 20 * 80) // 60} min 40 s")
    progress.say("[a] line [/of] others [link")
    assert capsys.readouterr().out == "[a] line [/of] others [link\n"


def test_a_resumed_stage_does_not_count_what_was_done_before(clock, capsys):
    progress = console.ConsoleProgress(PLANS, quiet=False)
    progress.begin_stage("finetune_64", 15)
    assert progress.eta_text() == ""
    clock[0] += 70
    progress.advance(1, 2, ROW)
    assert "step 6/10  left: stage 4 min 40 s, run 4 min 40 s" in capsys.readouterr().out


def test_a_terminal_has_a_bar_for_each_stage_and_the_run(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    progress = console.ConsoleProgress(PLANS, quiet=False)
    progress.begin_stage("pretrain_32", 0)
    clock[0] += 60
    progress.advance(15, 2, ROW)
    progress.end_stage("top-1 12.34 %")
    progress.begin_stage("finetune_64", 0)
    clock[0] += 60
    progress.advance(5, 1, ROW)
    progress.close()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).replace("\r", "\n")
    last = [line for line in drawn.splitlines() if line.strip()][-3:]
    assert re.fullmatch(r"pretrain_32 ━+ +100% top-1 12.34 % *", last[0])
    assert re.fullmatch(r"finetune_64 .* 25% epoch 1/2  loss 1.2346  4,321 images/s  waited 5 %  3 min left *", last[1])
    assert re.fullmatch(r"run .* 45% 3 min left *", last[2])


def test_other_ranks_say_nothing(clock, capsys):
    progress = console.ConsoleProgress(PLANS, quiet=True)
    progress.say("x")
    assert capsys.readouterr().out == ""
