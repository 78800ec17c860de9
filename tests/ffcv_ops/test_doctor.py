"""The doctor: faults are put in (stand-ins for libraries, tiny limits, damaged files) and each must be named with the
line that mends it. Stand-ins make a run quick; one test runs with the real libraries."""

import contextlib
import io
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ffcv_ops import doctor
from ffcv_ops.doctor import FAULT, OK, WARNING
from training import recipe

ROOT = Path(__file__).resolve().parents[2]
DEMO, VIT = str(ROOT / "recipes" / "demo.yaml"), str(ROOT / "recipes" / "vit_s_400ep.yaml")
TORCH = """
from types import SimpleNamespace as Space
cuda = Space(device_count=lambda: {gpus}, is_bf16_supported=lambda: True,
             get_device_properties=lambda i: Space(name="NVIDIA H100", total_memory=80 * 2**30))
version = Space(cuda={cuda!r})
distributed = Space(is_nccl_available=lambda: {nccl})
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A function that puts Python code in place of a library; at first all of them import and there is no GPU."""
    folder = tmp_path / "stand_ins"
    folder.mkdir()

    def put(name, code=""):
        (folder / f"{name}.py").write_text(code)

    for name in doctor.LIBRARIES:
        put(name)
    put("torch", TORCH.format(gpus=0, cuda=None, nccl=False))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return put


def found(what, *arguments):
    """The findings about one thing."""
    return [finding for finding in doctor.examine(*(arguments or ([], None))) if finding.what == what]


def test_where_nothing_is_wrong(stand_ins, capsys):
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "this machine can train" in said
    assert [line.split()[0] for line in said.splitlines() if line.split()[1:2] == ["torch"]] == ["ok"]
    assert not any(line.endswith(" ") for line in said.splitlines())


@pytest.mark.parametrize(
    ("name", "code", "said", "fix"),
    [
        ("torch", "raise ImportError('libcudart.so.13: not there')", "libcudart.so.13", "-c constraints.txt torch"),
        ("timm", "import nothing_of_that_name", "nothing_of_that_name", "pip install -c constraints.txt nothing_of"),
        ("ffcv", "raise ImportError('libturbojpeg.so.0: cannot open')", "libturbojpeg", "libturbojpeg0-dev"),
        ("ffcv", "raise ModuleNotFoundError(\"No module named 'distutils'\")", "distutils", "pip install setuptools"),
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')", "nms", "torch torchvision"),
        ("numba", "import os; os.abort()", "ended with status -6", "constraints.txt numba"),
        ("numba", "import sys; sys.exit('no')", "SystemExit", "constraints.txt numba"),
        ("numpy", "print('answer of numpy'); 1 / 0", "ZeroDivisionError", "constraints.txt numpy"),
    ],
)
def test_libraries_that_do_not_import(stand_ins, capsys, name, code, said, fix):
    stand_ins(name, code)
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    faults = [block for block in printed.split("\n\n") if block.startswith("fault: ")]
    assert len(faults) == 1, "the others are well"
    assert faults[0].startswith(f"fault: {name}: ") and said in faults[0]
    assert fix in faults[0].splitlines()[1]


def test_a_library_that_hangs(stand_ins, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 2)
    stand_ins("torchvision", "import time; time.sleep(60)")
    answers = doctor.answers(doctor.IMPORTS, doctor.LIBRARIES)
    assert "nothing happened" in answers["torchvision"].pop("error")
    assert not any("error" in answer for answer in answers.values())


@pytest.mark.parametrize(("version", "state"), [("2.5.1", FAULT), ("2.6.0", OK), ("2.11.0+cu132", OK)])
def test_versions_are_held_against_the_project(stand_ins, monkeypatch, version, state):
    real = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: version if name == "torch" else real(name))
    (row,) = found("torch")
    assert row.state == state
    assert state == OK or (">=2.6" in row.found and "'torch>=2.6'" in row.fix)


def test_it_starts_without_any_package(stand_ins):
    """-S hides everything that pip installed, rich and PyYAML too."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "ffcv_ops.doctor", "--cfg", DEMO], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "fault: other packages: fastargs missing" in done.stdout
    assert "warning: recipe: could not be looked at" in done.stdout


def test_few_open_files(stand_ins):
    done = subprocess.run(
        [sys.executable, "-m", "ffcv_ops.doctor"], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "fault: open files: 60 at a time" in done.stdout and "    ulimit -n" in done.stdout


def test_a_cache_that_cannot_be_written(stand_ins, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    (row,) = found("kernel cache")
    assert row.state == FAULT and "XDG_CACHE_HOME" in row.fix


def test_gpus(stand_ins, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    smi = tools / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor i in 1 2; do echo 'NVIDIA H100, 81559 MiB, 580.1'; done\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    (row,) = found("GPUs")
    assert row.state == FAULT and "a build without CUDA" in row.found
    stand_ins("torch", TORCH.format(gpus=2, cuda="13.2", nccl=True))
    (row,) = found("GPUs")
    assert row.state == OK and "2: NVIDIA H100 80 GiB" in row.found and "bf16" in row.found
    stand_ins("torch", TORCH.format(gpus=2, cuda="13.2", nccl=False))
    (row,) = found("NCCL")
    assert row.state == FAULT
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    (row,) = found("GPU driver")
    assert row.state == FAULT and "mismatch" in row.found


def test_a_forgotten_world(stand_ins, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    (row,) = found("processes")
    assert row.state == WARNING and row.fix.startswith("unset RANK WORLD_SIZE")


def test_limits_of_a_container(stand_ins, monkeypatch):
    monkeypatch.setattr(doctor.host, "cores", lambda: (8, 1.5))
    monkeypatch.setattr(doctor.host, "memory", lambda: (64 * 2**30, 40 * 2**30, 2**30))
    (row,) = found("cores")
    assert row.state == WARNING and "--data.workers=1" in row.fix
    (row,) = found("memory")
    assert row.state == WARNING and "control group: 1.0 GiB" in row.found


def test_a_recipe_with_its_data(stand_ins, tmp_path, monkeypatch, jpg_beton):
    """96 images and recipes for thousands: what the doctor proposes must then be accepted."""
    stand_ins("torch", TORCH.format(gpus=3, cuda="13.2", nccl=True))
    monkeypatch.setattr(doctor, "answers", _answers_of({jpg_beton: {"samples": 96, "classes": 5}}))
    text = Path(VIT).read_text().replace("data/imagenet_train.beton", str(jpg_beton))
    here = tmp_path / "vit.yaml"
    here.write_text(text.replace("base: base", f"base: {ROOT}/recipes/base"))
    (row,) = found("stage pretrain_224", [], str(here))
    assert row.state == FAULT and "2048 is more than 96 images" in row.found
    options = row.fix.partition(",")[0].split()
    overrides = dict(option.removeprefix("--").split("=") for option in options)
    assert recipe.load(VIT, overrides).stages[0].batch <= 96
    here.write_text(here.read_text() + "  mixup: 0\nstage: {batch: 16, mix_chunk: 16}\n")
    rows = found("stage pretrain_224", [], str(here))
    assert rows[0].state == WARNING and rows[0].fix == "torchrun --nproc-per-node=2 ..."


def _answers_of(files):
    real = doctor.answers
    return lambda code, names: (
        {str(path): answer for path, answer in files.items()} if code == doctor.FILES else real(code, names)
    )


def test_a_recipe_that_is_wrong(stand_ins, tmp_path):
    (tmp_path / "x.yaml").write_text("stage: {epoch: 3}\n")
    (row,) = found("recipe", [], str(tmp_path / "x.yaml"))
    assert row.state == FAULT and "the nearest is 'epochs'" in row.found


def test_data_larger_than_memory(stand_ins, monkeypatch, jpg_beton):
    monkeypatch.setattr(doctor.host, "memory", lambda: (2**30, 2**29, jpg_beton.stat().st_size))
    (row,) = found("data and memory", [str(jpg_beton)], None)
    assert row.state == WARNING and "--data.shuffle_pages=64 --data.cache=process" in row.fix
    monkeypatch.undo()
    (row,) = doctor.data_in_memory([jpg_beton])
    assert row.state == OK


def test_a_slow_disk(jpg_beton, monkeypatch):
    known = {"samples": 96, "classes": 5}
    monkeypatch.setattr(doctor.host, "read_speed", lambda path: (1000.0, True))
    _, row = doctor.beton("x.beton", [jpg_beton], known, True)
    assert row.state == WARNING and "local SSD" in row.fix
    monkeypatch.setattr(doctor.host, "read_speed", lambda path: (1e12, True))
    _, row = doctor.beton("x.beton", [jpg_beton], known, True)
    assert row.state == OK


def test_shards_are_one_data_set(stand_ins, tmp_path, encoded, write_shards, monkeypatch):
    """Named twice, beside one of them; two rows for each name, and a missing one is a fault."""
    pattern = str(write_shards(tmp_path, encoded, (20, 40, 36)))
    largest = tmp_path / "x_train-00001-of-00003.beton"
    timed = []
    monkeypatch.setattr(doctor.host, "read_speed", lambda path: timed.append(path) or (1e12, True))
    monkeypatch.setattr(doctor, "answers", _answers_of({pattern: {"samples": 96, "classes": 5}, str(largest): {}}))
    rows = list(doctor.examine([pattern, str(largest), pattern], None))
    assert timed == [largest, largest]
    assert [row.found.split(",")[0] for row in rows if row.what == pattern] == ["96 images"]
    assert [row.found.split(",")[0] for row in rows if row.what == str(largest)] == ["40 images"]
    size = sum(path.stat().st_size for path in tmp_path.glob("*.beton")) / 2**20
    (row,) = [row for row in rows if row.what == "data and memory"]
    assert row.found.startswith(f"{size:.1f} MiB of files")
    monkeypatch.undo()
    largest.unlink()
    (answer,) = doctor.answers(doctor.FILES, [pattern]).values()
    assert "shard 1 of 3 is missing" in answer["refused"]
    (row,) = doctor.beton(pattern, [tmp_path / "x_train-00000-of-00003.beton"], answer, True)
    assert row.state == FAULT and "shard 1 of 3 is missing" in row.found


def test_the_real_libraries_and_a_damaged_file(jpg_beton, tmp_path, capsys, monkeypatch):
    """The questions are asked in this process, which has imported everything already."""

    def answers(code, names):
        names = list(names)
        monkeypatch.setattr(sys, "argv", ["-c", *names])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, {})
        lines = [line.removeprefix(doctor.MARK) for line in said.getvalue().splitlines()]
        return dict(zip(names, map(json.loads, lines), strict=True))

    monkeypatch.setattr(doctor, "answers", answers)
    shutil.copy(jpg_beton, tmp_path / "half.beton")
    with (tmp_path / "half.beton").open("r+b") as file:
        file.truncate(jpg_beton.stat().st_size // 2)
    assert doctor.main([str(jpg_beton), str(tmp_path / "half.beton"), str(tmp_path / "none.beton")]) == 1
    said = " ".join(capsys.readouterr().out.split("\n\n"))
    assert said.count("fault: ") == 2
    assert "half.beton: " in said and "truncated or damaged" in said
    assert "none.beton: no such file" in said
    assert "96 images" in said and "5 classes" in said
