"""setup.sh with a stand-in for Python, pip, apt and pkg-config: what it calls, when it calls nothing, what it says.

The real thing needs the network and minutes; it runs whenever the tests are started with `make test`.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TOOLS = "bash cat cut dirname grep ln mkdir paste readlink rm sed sha256sum tail touch tr"

PYTHON = """#!/bin/bash
case "$*" in
*version_info*) echo {version}; exit ;;
*sysconfig*) echo {include}; exit ;;
"-c import ensurepip") exit ;;
esac
echo "python{version} $*" >>{log}
case "$*" in
"-m venv --clear "*)
    rm -rf "$4" && mkdir -p "$4/bin" && touch "$4/pyvenv.cfg"
    ln -s "$(readlink -f "$0")" "$4/bin/python"
    ;;
"- "* | -) {python} "$@" ;;
"-m pip install "*) echo "Collecting torch"; exit "${{PIP_STATUS:-0}}" ;;
"-m pip list"*) printf 'Package     Version\\ntorch       2.15.0+cpu\\ntorchvision 0.29.2\\n' ;;
"-c import torchvision") echo "${{TORCHVISION:-}}" >&2; [[ -z ${{TORCHVISION:-}} ]] ;;
esac
"""


class Machine:
    """A folder with the project's set-up files and a PATH of stand-ins."""

    def __init__(self, folder):
        self.project, self.bin, self.log = folder / "project", folder / "bin", folder / "log"
        self.project.mkdir()
        self.bin.mkdir()
        (folder / "include").mkdir()
        (folder / "include" / "Python.h").touch()
        for name in ("setup.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.project)
        for name in TOOLS.split():
            (self.bin / name).symlink_to(shutil.which(name))
        for name in ("g++", "pkg-config"):
            self.command(name, "exit 0")
        self.command("id", "echo 1000")

    def command(self, name, code):
        (self.bin / name).write_text(f"#!/bin/bash\n{code}\n")
        (self.bin / name).chmod(0o755)

    def python(self, name, version):
        include = self.log.parent / "include"
        code = PYTHON.format(version=version, include=include, log=self.log, python=sys.executable)
        (self.bin / name).write_text(code)
        (self.bin / name).chmod(0o755)

    def setup(self, *groups, **environment):
        """The ended process and the calls it made."""
        self.log.write_text("")
        ended = subprocess.run(
            [self.project / "setup.sh", *groups],
            env={"PATH": str(self.bin), **environment},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return ended, self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def installs(calls):
    return [call for call in calls if "pip install" in call]


def test_a_fresh_machine_is_set_up_once(machine):
    machine.python("python3", "3.11")
    ended, calls = machine.setup()
    assert ended.returncode == 0, ended.stderr
    assert calls[0] == "python3.11 -m venv --clear .venv"
    assert len(installs(calls)) == 1
    assert "--constraint constraints.txt --requirement .venv/requirements.txt" in installs(calls)[0]
    assert calls[-1] == "python3.11 -m ffcv_ops.warm_up"
    asked = (machine.project / ".venv" / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert asked == project["dependencies"] + project["optional-dependencies"]["train"]

    assert ended.stdout.count("\n") == 3, "where, how much and that it is done"
    assert "GB to download" in ended.stdout
    assert "Collecting torch" in (machine.project / "build" / "setup.log").read_text()

    again, calls = machine.setup()
    assert (again.returncode, again.stdout, calls) == (0, "", [])


def test_without_an_environment_what_is_there_stays(machine):
    """Neither a venv nor exact versions, which would bring another torch; another Python is another set-up."""
    machine.python("python3", "3.13")
    machine.python("other", "3.12")
    ended, calls = machine.setup("onnx", VENV="none")
    assert ended.returncode == 0, ended.stderr
    assert not any("venv" in call or "--constraint" in call for call in calls)
    assert "--requirement build/none/requirements.txt" in installs(calls)[0]
    assert calls[-1] == "python3.13 -m ffcv_ops.warm_up"
    assert not (machine.project / "none").exists()
    assert machine.setup("onnx", VENV="none")[1] == []
    assert len(installs(machine.setup(VENV="none", PYTHON="other")[1])) == 1


@pytest.mark.parametrize(
    ("given", "python"),
    [([], '".venv/bin/python"'), (["VENV=none"], "python3"), (["VENV=none", "PYTHON=python3.13"], "python3.13")],
)
def test_make_runs_the_python_that_is_set_up(given, python):
    ended = subprocess.run(["make", "-n", "demo", *given], cwd=ROOT, capture_output=True, text=True)
    assert f"{python} write_datasets.py\n" in ended.stdout


def test_an_extra_is_added_once_and_a_change_of_versions_is_followed(machine):
    machine.python("python3", "3.12")
    machine.setup()
    _, calls = machine.setup("dev")
    assert len(installs(calls)) == 1
    assert "venv" not in calls[0]
    asked = (machine.project / ".venv" / "requirements.txt").read_text()
    assert re.search("^torch>=", asked, re.M)
    assert re.search("^pytest>=", asked, re.M)
    assert machine.setup("dev")[1] == machine.setup()[1] == []

    with (machine.project / "constraints.txt").open("a") as file:
        file.write("another==1\n")
    assert len(installs(machine.setup()[1])) == 1
    assert machine.setup()[1] == []
    assert len(installs(machine.setup("dev")[1])) == 1


def test_the_first_supported_python_is_taken(machine):
    machine.python("python3", "3.10")
    machine.python("python3.12", "3.12")
    assert machine.setup()[1][0].startswith("python3.12 -m venv")


def test_python_asked_for_replaces_an_environment_of_another_version(machine):
    machine.python("python3", "3.11")
    machine.python("other", "3.12")
    machine.setup()
    ended, calls = machine.setup(PYTHON="other")
    assert ended.returncode == 0
    assert calls[0] == "python3.12 -m venv --clear .venv"
    assert machine.setup(PYTHON="other")[1] == []
    assert machine.setup()[1] == [], "what is there serves as long as nothing else is asked for"


@pytest.mark.parametrize(
    ("pythons", "environment", "found"),
    [
        ({"python3": "3.10"}, {}, "python3 is 3.10"),
        ({"python3": "3.14"}, {}, "python3 is 3.14"),
        ({"python3": "3.10", "python3.12": "3.12"}, {"VENV": "none"}, "python3 is 3.10"),
        ({"python3": "3.11", "old": "3.9"}, {"PYTHON": "old"}, "old is 3.9"),
        ({}, {}, "none"),
    ],
)
def test_no_supported_python_is_one_clear_line(machine, pythons, environment, found):
    for name, version in pythons.items():
        machine.python(name, version)
    ended, calls = machine.setup(**environment)
    assert (ended.returncode, calls) == (1, [])
    assert ended.stderr.count("\n") == 1
    assert f"Python 3.11 to 3.13 is needed (found: {found})" in ended.stderr
    assert not (machine.project / ".venv").exists()


def test_without_root_missing_libraries_are_named_with_the_apt_and_the_conda_line(machine):
    machine.python("python3", "3.11")
    machine.command("pkg-config", '[[ "$*" != *opencv4* ]]')
    ended, calls = machine.setup()
    assert (ended.returncode, calls) == (1, [])
    assert "this machine lacks: libopencv-dev." in ended.stderr
    assert "sudo apt-get install libopencv-dev\n" in ended.stderr
    assert "conda install -c conda-forge" in ended.stderr
    (machine.bin / "pkg-config").unlink()
    assert "sudo apt-get install pkg-config libopencv-dev libturbojpeg0-dev libjpeg-dev\n" in machine.setup()[0].stderr


def test_as_root_missing_libraries_are_installed_with_apt(machine):
    machine.python("python3", "3.11")
    machine.command("id", "echo 0")
    machine.command("pkg-config", f"[[ -e {machine.bin}/installed ]]")
    machine.command("apt-get", f'echo "apt-get $*" >>{machine.log}; touch {machine.bin}/installed')
    ended, calls = machine.setup()
    assert ended.returncode == 0
    assert calls[0].startswith("apt-get update")
    assert calls[1].startswith("apt-get install -y ")
    assert calls[1].endswith(" libopencv-dev libturbojpeg0-dev libjpeg-dev")
    assert "venv" in calls[2]


@pytest.mark.parametrize("present", ["chromium", "google-chrome", None])
@pytest.mark.parametrize("root", [True, False])
def test_a_browser_is_for_developers_and_no_condition(machine, root, present):
    machine.python("python3", "3.11")
    if root:
        machine.command("id", "echo 0")
        machine.command("apt-get", f'echo "apt-get $*" >>{machine.log}; exit 100')
    if present:
        machine.command(present, "exit 0")
    ended, calls = machine.setup()
    assert "chromium" not in ended.stdout + "".join(calls)
    ended, calls = machine.setup("dev")
    assert ended.returncode == 0, ended.stderr
    assert any(call.startswith("apt-get install") and call.endswith(" chromium") for call in calls) == (
        root and not present
    )
    assert ("(sudo apt-get install chromium)" in ended.stdout) == (not present)


def test_a_torch_and_torchvision_that_do_not_match_are_explained(machine):
    machine.python("python3", "3.11")
    ended, _ = machine.setup(TORCHVISION="Traceback ...\nRuntimeError: operator torchvision::nms does not exist")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "torch and torchvision are no pair (torch 2.15.0+cpu, torchvision 0.29.2)" in ended.stderr
    ended, _ = machine.setup(TORCHVISION="Traceback ...\nImportError: libz.so.1: no such file")
    assert ended.stderr == "setup: torchvision does not import: ImportError: libz.so.1: no such file\n"
    ended, calls = machine.setup()
    assert (ended.returncode, len(installs(calls))) == (0, 1), "a set-up that failed is tried again"


def test_a_failing_pip_leaves_no_stamp(machine):
    machine.python("python3", "3.11")
    ended, _ = machine.setup(PIP_STATUS="1")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == "Collecting torch", "the log's last lines are shown"
    assert "pip could not install the packages; all that it said is in build/setup.log" in ended.stderr
    assert len(installs(machine.setup()[1])) == 1


def test_a_folder_that_is_no_environment_is_left_alone(machine):
    machine.python("python3", "3.11")
    (machine.project / "mine").mkdir()
    (machine.project / "mine" / "thesis").touch()
    ended, _ = machine.setup(VENV="mine")
    assert ended.returncode == 1
    assert "mine is there and is not a virtual environment" in ended.stderr
    assert (machine.project / "mine" / "thesis").exists()


def test_constraints_are_plain_pins_that_satisfy_the_projects_ranges():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        asked = Requirement(text)
        assert asked.specifier.contains(pins[asked.name.lower()]), text


def test_continuous_integration_runs_the_readmes_test_command(tmp_path):
    make = tmp_path / "make"
    make.write_text('#!/bin/bash\necho "$PWD: make $*"\n')
    make.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run([ROOT / ".ci" / "run"], env={"PATH": path, "CI": "true"}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"{ROOT}: make test\n")
