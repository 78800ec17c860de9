"""Ctrl-C at real processes, five times: one line that says what is kept, status 130, and the same command goes on."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from training.saving import checkpoint

ROOT = Path(__file__).resolve().parents[1]


def interrupted(words, reached, cwd=ROOT):
    """Starts the command, sends SIGINT five times to all of its session once `reached()`, as a terminal does. Returns
    what it printed on both streams."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(5):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.03)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return said, errors


@pytest.mark.timeout(150)
def test_training(jpg_beton, tmp_path):
    """Twice: the second start goes on from where the first stood."""
    words = [ROOT / "train_imagenet.py", f"--cfg={ROOT}/recipes/demo.yaml", f"--data.train={jpg_beton}",
             f"--data.val={jpg_beton}", f"--log.out={tmp_path}", "--log.name=run", "--log.tensorboard=false",
             "--log.save_every=1e-9", "--log.every=1", "--log.keep=100", "--model.name=deit3_micro_patch16_224",
             "--stage.resolution=32", "--stage.batch=16", "--stage.mix_chunk=8", "--stage.epochs=50",
             "--speed.device=cpu", "--data.workers=1"]  # fmt: skip
    folder = tmp_path / "run" / "checkpoints"
    for start in range(2):
        before = len(checkpoint.saved(folder))
        said, errors = interrupted(words, lambda before=before: len(checkpoint.saved(folder)) > before + 2)
        step = int(checkpoint.saved(folder)[-1].stem)
        kept = f"{folder.parent} keeps the checkpoint of step {step}, the same command goes on from there"
        assert errors == f"interrupted; {kept}\n"
        assert ("going on at stage" in said) == bool(start)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
             if '"kind": "step"' in line]  # fmt: skip
    assert steps[: step - 1] == list(range(1, step))


@pytest.mark.timeout(60)
def test_while_the_libraries_load(tmp_path):
    """A stand-in for torch takes long."""
    (tmp_path / "torch.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path)!r}, 'loading').touch()\ntime.sleep(60)\n"
    )
    words = ["train_imagenet.py", f"--cfg={ROOT}/recipes/smoke.yaml"]
    code = f"import runpy, sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; sys.argv = {words!r}\n"
    code += "runpy.run_path('train_imagenet.py', run_name='__main__')"
    assert interrupted(["-c", code], (tmp_path / "loading").exists) == ("", "interrupted\n")


@pytest.mark.timeout(150)
def test_converting(tmp_path):
    """Before the first chunk of images is finished, behind it, and then without a disturbance."""
    images = tmp_path / "in" / "train" / "a"
    images.mkdir(parents=True)
    Image.radial_gradient("L").resize((40, 30)).save(tmp_path / "0.jpg")
    for number in range(12_000):
        os.link(tmp_path / "0.jpg", images / f"{number:05}.jpg")
    words = [ROOT / "write_datasets.py", "--data.source=in", "--data.out=out/x", "--data.workers=1"]
    growing, journal = (tmp_path / "out" / f"x_train.{end}.partial" for end in ("beton", "journal"))
    said, errors = interrupted(words, growing.exists, cwd=tmp_path)
    assert said == ""
    assert errors == "interrupted; no images of out/x_train.beton are finished yet; the same command starts over\n"
    said, errors = interrupted(words, lambda: journal.exists() and journal.stat().st_size > 0, cwd=tmp_path)
    told = re.fullmatch(
        r"interrupted; ([\d,]+) of 12,000 images of out/x_train.beton are finished; run the same command again to"
        r" continue\n", errors,
    )  # fmt: skip
    again = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"continues behind the {told[1]} of 12,000 images that are finished" in again.stderr
