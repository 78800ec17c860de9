"""When a report is made, from what, and what else lies beside it."""

import os
import shutil

import pytest
from PIL import Image

import report
from ffcv_ops.errors import UserError
from report import __main__ as command
from report.collect import collect
from training.evaluation import predictions


def test_it_is_made_of_the_folder_alone(make_run, guesses, tmp_path, monkeypatch, capsys):
    """The same bytes from a copy elsewhere, by the command line."""
    folder = make_run(tmp_path / "made")
    predictions.save(folder / predictions.FILE, guesses)
    said = report.write(folder)
    first = (folder / "report.html").read_bytes()
    copied = tmp_path / "elsewhere" / "made"
    shutil.copytree(folder, copied)
    (copied / "report.html").unlink()
    monkeypatch.chdir(tmp_path)
    command.main([str(copied)])
    assert (copied / "report.html").read_bytes() == first
    assert capsys.readouterr().out.splitlines()[:5] == said.splitlines()[:5]
    assert "61.79" in said
    assert Image.open(copied / "curves.png").width > 1000
    assert "| first_32  |" in (copied / "report.md").read_text()


def test_only_a_finished_run_has_report_md(make_run, tmp_path):
    """rn_vs_vit takes it for the end of a cell."""
    for epochs, ended in ((0, False), (1, False), (2, True)):
        folder = make_run(tmp_path / str(epochs), epochs=epochs)
        said = report.write(folder)
        assert (folder / "report.md").exists() == ended
        assert ("model.safetensors" in said) == ended
        assert (folder / "report.html").exists()


def test_a_running_run_is_reported_once_a_minute(make_run, tmp_path):
    folder = make_run(tmp_path / "made", epochs=1)
    page = folder / "report.html"
    report.refresh(folder, say=pytest.fail)
    assert "Epoch 1 of 1, stage 1 of 2" in page.read_text()
    page.write_text("fresh")
    report.refresh(folder, say=pytest.fail)
    assert page.read_text() == "fresh"
    os.utime(page, (page.stat().st_mtime - 61,) * 2)
    report.refresh(folder, say=pytest.fail)
    assert page.read_text() != "fresh"


def test_what_goes_wrong_costs_a_line(make_run, tmp_path):
    folder = make_run(tmp_path / "made", epochs=1)
    (folder / "recipe.yaml").unlink()
    lines = []
    report.refresh(folder, say=lines.append)
    assert len(lines) == 1
    assert "report.html was not made" in lines[0]


def test_a_full_disk_costs_the_report_and_a_line(make_run, guesses, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "made")

    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_atomically", full)
    monkeypatch.setattr(predictions, "write_atomically", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); make room"):
        report.write(folder)
    lines = []
    report.refresh(folder, say=lines.append)
    predictions.save(folder / predictions.FILE, guesses, say=lines.append)
    assert len(lines) == 2
    assert all("No space left on device" in line for line in lines)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04."])
def test_damaged_predictions_leave_a_gap(make_run, tmp_path, content):
    folder = make_run(tmp_path / "made")
    (folder / predictions.FILE).write_bytes(content)
    assert collect(folder).predictions is None
    report.write(folder)
    assert "Mistakes" not in (folder / "report.html").read_text()


def test_a_comparison_that_cannot_be_written_is_one_line(make_run, tmp_path, capsys):
    runs = [str(make_run(tmp_path / name)) for name in ("one", "two")]
    with pytest.raises(SystemExit) as ended:
        command.main([*runs, "--out", "/proc/nothing/compare.html"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: /proc/nothing/compare.html cannot be written: No such file or directory\n"


def test_no_run_folder_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path)])
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: not a run folder")
