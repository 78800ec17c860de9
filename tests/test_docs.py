"""What README, docs and recipes tell the reader to type is something that the programs understand.

Commands are cut out of the texts and given to the programs' own parsers, which are stopped when they have parsed; the
recipe of a training command is resolved with the command's keys. Nothing is run. Keys in the prose and links are looked
up too.
"""

import argparse
import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from torch.distributed import run as torchrun

from config import command_line
from config.options import all_names
from config.recipe import load_recipe
from config.schema import SECTIONS
from ffcv_ops.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "rn_vs_vit/README.md"]
NOTEBOOK = ROOT / "demo.ipynb"
RECIPES = sorted(path for folder in ("recipes", "rn_vs_vit") for path in ROOT.glob(f"{folder}/**/*.yaml"))
SKIPPED = {"tests", "data", "runs", "build", ".venv"}
MODULES = [
    *ROOT.glob("*.py"),
    *(path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] not in SKIPPED),
]
STARTS = r"(?:[A-Z_]+=\S+ )*(?:python|torchrun|make)\b"
SHELL = ("|", ">", "&&", ";", "&", "2>&1")
NO_KEYS = (
    "py", "c", "jsonl", "json", "md", "yaml", "txt", "beton", "out", "png", "html", "csv", "safetensors", "pt", "pt2",
    "pth", "onnx",
)  # fmt: skip


class Parsed(Exception):
    """Ends a program that has parsed its command line: (options, {key: text})."""


def commands(path):
    """Every command of a file, as one line: in code blocks, in `code` of the prose, indented in docstrings, in comments
    of recipes. Not those that are shown with the error that they end in."""
    text = path.read_text()
    if path.suffix == ".yaml":
        text = re.sub(r"^#", "", text, flags=re.MULTILINE)
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join(line.removeprefix("!") for cell in cells for line in "".join(cell["source"]).splitlines())
    text = re.sub(r" \\\n\s*", " ", text)
    shown = text
    if path.suffix == ".md":
        shown = "\n".join(re.findall(r"^[ \t]*```.*?^[ \t]*```|^ {4}[^\n]*$", text, re.MULTILINE | re.DOTALL))
    found = re.findall(rf"^[ \t]*(?:\$ )?({STARTS}.*)$(?!\nerror: )", shown, re.MULTILINE)
    if path.suffix == ".md":
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += [" ".join(code.split()) for code in re.findall(rf"`({STARTS}[^`]*)`", prose)]
        found = [line for line in found if not line.endswith("`") or "`" not in line[:-1]]
    else:
        found = [line for line in found if re.match(r"(?:python (?:-m |\w+\.py)|torchrun )", line)]
    return [
        " ".join(line.split()) for line in found if "[--" not in line and " " in line
    ]  # that would be a list of options


def words(command):
    """What the shell would hand over, up to a pipe or the like, without variables in front and `...`."""
    split = shlex.split(command, comments=True)
    end = next((place for place, word in enumerate(split) if word in SHELL), len(split))
    split = [word for word in split[:end] if word not in ("...", "..")]
    while "=" in split[0]:
        split = split[1:]
    return split


def parse(program, arguments):
    """Has the program parse its command line. Returns what it made of it, or None where it parses nothing."""
    module = importlib.import_module(program)
    if not hasattr(module, "main"):
        if not hasattr(module, "__path__"):  # a module that is run as a file parses where no one can stop it
            return None
        module = importlib.import_module(f"{program}.__main__")
    source = Path(module.__file__).read_text()
    if not any(f"{way}(" in source for way in ("parse_args", "command_line.parse", "train_command.parse")):
        return None
    real_options, real_args = command_line.parse, argparse.ArgumentParser.parse_args

    def stop_options(*given, **named):
        argparse.ArgumentParser.parse_args = real_args
        raise Parsed(*real_options(*given, **named), given[1])

    def stop_args(parser, *given, **named):
        raise Parsed(real_args(parser, *given, **named), {}, {})

    command_line.parse, argparse.ArgumentParser.parse_args = stop_options, stop_args
    before, sys.argv = sys.argv, [program, *arguments]
    try:
        module.main()
    except Parsed as parsed:
        return parsed.args
    except SystemExit as ended:
        if ended.code == 0:  # --help
            return None
        raise
    finally:
        command_line.parse, argparse.ArgumentParser.parse_args, sys.argv = real_options, real_args, before
    raise AssertionError(f"{program} did not parse anything")


def check(command):
    split = words(command)
    if split[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wanted = [word for word in split[1:] if "=" not in word]
        assert all(target in targets for target in wanted), f"{wanted} of {targets}"
        return
    if split[0] == "torchrun":
        given = torchrun.get_args_parser().parse_args(split[1:])
        split = ["python", given.training_script, *given.training_script_args]
    if split[1] == "-m":
        program, arguments = split[2], split[3:]
        if program in ("pip", "pytest", "ruff"):
            return
        assert importlib.util.find_spec(program), f"there is no module {program}"
    elif split[1].endswith(".py"):
        program, arguments = split[1].removesuffix(".py"), split[2:]
        assert (ROOT / split[1]).is_file(), f"there is no {split[1]}"
    else:
        return
    for word in arguments:
        name = word.rpartition("=")[2]
        if re.match(r"(recipes|rn_vs_vit)/.*\.yaml$", name):
            assert (ROOT / name).is_file(), f"there is no {name}"
    own = arguments
    if program == "tools.slurm":
        own = arguments[: arguments.index("--")]
        check(shlex.join(["python", "train_imagenet.py", *arguments[len(own) + 1 :]]))
        own += ["--", "--cfg", "x"]
    parsed = parse(program, own)
    if parsed and program == "train_imagenet":
        assert parsed[0].cfg or parsed[0].eval_only, "no --cfg"
    if parsed and program == "train_imagenet" and parsed[0].cfg and (ROOT / parsed[0].cfg).is_file():
        given = {path: text for path, text in parsed[1].items() if path in all_names(SECTIONS)}
        if ".py:" in given.get("stage.augment", ""):  # a file that the page tells the reader to write
            del given["stage.augment"]
        load_recipe(ROOT / parsed[0].cfg, given)


ALL = {
    f"{path.relative_to(ROOT)}: {command}": command
    for path in (*PAGES, NOTEBOOK, *RECIPES, *MODULES)
    for command in commands(path)
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ALL, ids=lambda place: place[:100])
def test_commands_are_understood(place, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    check(ALL[place])


def test_commands_are_found():
    assert len(ALL) > 60
    assert [command.split()[1] for command in commands(NOTEBOOK)] == [
        "write_datasets.py", "-m", "train_imagenet.py", "-m", "-m", "-m",
    ]  # fmt: skip
    assert any(" torchrun " in place or ": torchrun" in place for place in ALL)


@pytest.mark.parametrize(
    "command",
    [
        "python train_imagenet.py --cfg recipes/demo.yaml --stage.epoch=3",
        "python train_imagenet.py --cfg recipes/demo.yaml --stage.epochs=three",
        "python train_imagenet.py --cfg recipes/nothing.yaml",
        "python train_imagenet.py",
        "python write_datasets.py --data.sorce=x",
        "python -m tools.preview x.beton --cfg recipes/demo.yaml --drows=3",
        "python -m ffcv_ops.nothing",
        "torchrun --nproc-per-node=8 train_imagenet.py --cfg recipes/demo.yaml --data.trein=x",
        "torchrun --processes=8 train_imagenet.py --cfg recipes/demo.yaml",
        "python -m tools.slurm --nodes=2 -- --cfg recipes/demo.yaml --stage.epoch=3",
        "make dmeo",
    ],
)
def test_faults_are_found(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((UserError, SystemExit, AssertionError)):
        check(command)


def known_keys():
    """Of both programs, as their parsers declare them."""
    of_training, of_writing = parse("train_imagenet", ["--cfg", "x"]), parse("write_datasets", [])
    return {*all_names(of_training[2]), *all_names(of_writing[2])}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_keys_in_the_prose_exist(path):
    known = known_keys()
    sections = {name.partition(".")[0] for name in known if "." in name}
    for code in re.findall(r"`([^`\n]+)`", path.read_text()):
        for section, name in re.findall(r"(?<![\w./])(?:--)?([a-z]+)\.([a-z_0-9]+)\b(?![(/.])", code):
            if section in sections and name not in NO_KEYS:
                assert f"{section}.{name}" in known, code


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link
