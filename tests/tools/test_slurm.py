"""The launcher on submitit's local executor, which starts, signals and requeues as Slurm does."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from ffcv_ops.errors import UserError
from tools import slurm

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ["--local", "--gpus-per-node=0"]


def rows(folder, kind):
    file = folder / "run" / "log.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.timeout(300)
def test_a_preempted_job_saves_requeues_itself_and_goes_on(tmp_path, jpg_beton):
    """Two processes; the signal comes in the middle of the training."""
    run = ["--cfg", str(ROOT / "recipes/smoke.yaml"), "--model.name=deit3_micro_patch16_224", "--stage.resolution=32",
           "--stage.batch=16", "--stage.mix_chunk=8", "--stage.epochs=6", "--speed.device=cpu", "--log.every=1",
           "--data.workers=1", f"--data.train={jpg_beton}", f"--data.val={jpg_beton}", f"--log.out={tmp_path}",
           "--log.name=run"]  # fmt: skip
    options, arguments = slurm.parse([*LOCAL, "--processes-per-node=2", f"--logs={tmp_path / 'logs'}", "--", *run])
    job = slurm.executor(options).submit(slurm.Training(arguments))
    deadline = time.time() + 200
    while len(rows(tmp_path, "step")) < 4:
        assert time.time() < deadline
        assert not job.done(), job.exception()
        time.sleep(0.02)
    children = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGUSR2)
    assert job.results() == ["done", "done"]
    output = job.task(0).stdout()
    assert "as asked" in output
    assert output.count("going on at stage") == 1
    steps = [row["step"] for row in rows(tmp_path, "step")]
    assert steps == list(range(1, 73))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_what_is_to_be_trained_must_be_said(capsys):
    with pytest.raises(UserError, match="nothing to train"):
        slurm.parse([*LOCAL, "--", "--stage.epochs=1"])
    with pytest.raises(SystemExit) as ended:
        slurm.main(LOCAL)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("rest", "words"), [
    (["--cfg", "recipes/nothing.yaml"], "recipes/nothing.yaml cannot be read"),
    (["--cfg", str(ROOT / "recipes/smoke.yaml"), "--stage.epohcs=3"], "the nearest is --stage.epochs"),
    (["--cfg", str(ROOT / "recipes/smoke.yaml")], "Could not detect"),
])  # fmt: skip
def test_a_mistake_is_said_before_anything_is_queued(rest, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as ended:
        slurm.main([f"--logs={tmp_path}", "--", *rest])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_slurm_is_asked_for_what_the_options_say(tmp_path, monkeypatch):
    """The script for sbatch: nodes, a process for each GPU, notice before the end."""
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    options, _ = slurm.parse(["--nodes=2", "--gpus-per-node=8", "--hours=10", "--partition=long",
                              f"--logs={tmp_path}", "--", "--cfg=x"])  # fmt: skip
    text = slurm.executor(options)._executor._make_submission_file_text("command", "id")
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=600", "--partition=long",
                 "--signal=USR2@120", "--cpus-per-task=12"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
