"""Libraries that are broken, too old, or have nowhere to write: each is named with the line that mends it."""

import importlib.metadata

import pytest

from tools.doctor import __main__ as command
from tools.doctor.findings import FAULT, OK


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
    assert command.main([]) == 1
    printed = capsys.readouterr().out
    faults = [block for block in printed.split("\n\n") if block.startswith("fault: ")]
    assert len(faults) == 1, "the others are well"
    assert faults[0].startswith(f"fault: {name}: ") and said in faults[0]
    assert fix in faults[0].splitlines()[1]


@pytest.mark.parametrize(("version", "state"), [("2.5.1", FAULT), ("2.6.0", OK), ("2.11.0+cu132", OK)])
def test_versions_are_held_against_the_project(monkeypatch, version, state, found):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torch" else real(name))
    (row,) = found("torch")
    assert row.state == state
    assert state == OK or (">=2.6" in row.found and "'torch>=2.6'" in row.fix)


def test_a_cache_that_cannot_be_written(monkeypatch, found):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    (row,) = found("kernel cache")
    assert row.state == FAULT and "XDG_CACHE_HOME" in row.fix
