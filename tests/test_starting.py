"""What a program imports before it answers --help or refuses a command line: nothing that takes seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "ffcv", "timm", "numba", "matplotlib", "scipy", "sklearn", "skimage", "cv2", "jinja2"}
TOOLS = sorted(f"tools.{path.stem}" for path in ROOT.glob("tools/*.py") if "\n    main()\n" in path.read_text())
PARTS = sorted({f"tools.{path.stem}" for path in ROOT.glob("tools/[!_]*.py")} - {*TOOLS})
PROGRAMS = {
    "train_imagenet.py": ["train_imagenet.py"],
    "write_datasets.py": ["write_datasets.py"],
    **{name: ["-m", name] for name in (*TOOLS, "tools.doctor", "report", "rn_vs_vit")},
}
RECIPE = ["--cfg", "recipes/smoke.yaml"]


def imported(command):
    """Exit status, what was printed, and the packages that were imported."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    lines = ended.stderr.splitlines()
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    return ended.returncode, [*ended.stdout.splitlines(), *said], names


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_nothing_heavy(program):
    status, said, names = imported([*PROGRAMS[program], "--help"])
    assert status == 0
    assert re.match("usage: ", said[0])
    assert not names & HEAVY


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_typo_imports_nothing_heavy(program):
    status, said, names = imported([*PROGRAMS[program], "--hepl"])
    assert (status, said) == (2, ["error: --hepl is not an option; the nearest is --help"])
    assert not names & HEAVY


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cfg", "recipes/nothing.yaml"], "recipes/nothing.yaml cannot be read: No such file or directory"),
        ([*RECIPE, "--init="], "--init is empty; give it a value or leave it out"),
        ([*RECIPE, "--start-at", ""], "--start-at is empty; give it a value or leave it out"),
        ([*RECIPE, "--measure"], "--measure, --at-throughput and --on belong to --print"),
        ([*RECIPE, "--eval.out=x"], "--eval.out belongs to --eval-only"),
        ([*RECIPE, "--stage.lr=fast"], "--stage.lr is 'fast'; it must be a number at least 1e-20 and at most 10,000"),
    ],
)
def test_mistakes_are_told_before_anything_heavy_is_imported(arguments, complaint):
    status, said, names = imported(["train_imagenet.py", *arguments])
    assert (status, said) == (2, [f"error: {complaint}"])
    assert not names & HEAVY


@pytest.mark.parametrize("module", PARTS)
def test_what_is_a_part_of_a_command_says_of_which(module, run_python):
    ended = run_python(["-m", module])
    assert ended.returncode == 2
    assert re.fullmatch(r"error: this is a part of python .*, which is the command to start\n", ended.stderr)


def test_print_imports_nothing_heavy():
    status, said, names = imported(["train_imagenet.py", "--cfg", "recipes/vit_h_800ep.yaml", "--print"])
    assert status == 0
    assert any(line.startswith("# finetune_224  224     256   632.126  167.30") for line in said)
    assert not names & HEAVY
