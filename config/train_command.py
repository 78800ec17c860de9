"""The command line of train_imagenet.py. Reading it imports neither torch nor FFCV."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from config import command_line
from config.options import build, select
from config.recipe import base_values, load_recipe
from config.schema import SECTIONS, EvalConfig, Recipe
from ffcv_ops.errors import UserError
from ffcv_ops.options import parse_value

WEIGHTS = "a run's folder, a .safetensors, .pt or .pth file, a timm folder, timm:NAME or hf-hub:ORG/NAME@REVISION"
MOST_IMAGES_PER_S = 1e7
DEVICES = ("a100", "h100", "h200", "4090", "t4", "cpu")  # whose speed training/planning/roofline.py estimates


def throughput(text: str) -> list[float]:
    """Of the first stage: a number above 0 and at most MOST_IMAGES_PER_S."""
    return [parse_value(float, text, {"above": 0, "at most": MOST_IMAGES_PER_S})]


ARGUMENTS = (
    ("--cfg", {"metavar": "FILE", "help": "the recipe; with --eval-only that of the run which --init is or lies in"}),
    ("--print", {"action": "store_true", "help": "show the resolved recipe and what its stages cost, and stop"}),
    ("--at-throughput", {"metavar": "N", "type": throughput, "default": [],
                         "help": "with --print: hours at N training images/s and GPU in the first stage"}),
    ("--on", {"choices": DEVICES, "help": "with --print: estimated speed, hours and euros on this GPU (cpu: as"
                                          " bench.step measured it)"}),
    ("--measure", {"action": "store_true", "help": "with --print: hours at this device's speed, on random images"}),
    ("--init", {"metavar": "WEIGHTS", "help": f"weights to start from: {WEIGHTS}"}),
    ("--start-at", {"metavar": "STAGE", "help": "leave out the stages before this one (with --init)"}),
    ("--eval-only", {"action": "store_true", "help": "evaluate --init as the last stage does, record it and stop"}),
)  # fmt: skip


class TrainCommand(NamedTuple):
    """What a command line asks for: its plain arguments, the recipe, and what --eval-only looks at."""

    arguments: argparse.Namespace
    recipe: Recipe
    evaluation: EvalConfig


def parse(
    description: str,
    argv: Sequence[str] | None = None,
    preprocessing: Callable[[Recipe, str | None], Mapping[str, Mapping]] = lambda recipe, init: {},
) -> TrainCommand:
    """The command line, checked as far as that goes without looking at data. `description` stands above --help.
    preprocessing: what the recipe's `auto` stands for, by the recipe with the usual values and by --init."""
    arguments, given = command_line.parse(description, SECTIONS | {"eval": EvalConfig}, base_values(), ARGUMENTS, argv)
    of_eval = select(given, "eval")
    of_recipe = {name: text for name, text in given.items() if not name.startswith("eval.")}
    cfg = arguments.cfg or _recipe_of(arguments)
    recipe = load_recipe(cfg, of_recipe)
    if found := preprocessing(recipe, arguments.init):
        recipe = load_recipe(cfg, of_recipe, found)
    if of_eval and not arguments.eval_only:
        raise UserError(f"--eval.{next(iter(of_eval))} belongs to --eval-only")
    if arguments.start_at and arguments.eval_only:
        raise UserError("--start-at belongs to training, not to --eval-only")
    if (arguments.measure or arguments.at_throughput or arguments.on) and not arguments.print:
        raise UserError("--measure, --at-throughput and --on belong to --print")
    return TrainCommand(arguments, recipe, build(EvalConfig, of_eval, "--eval."))


def _recipe_of(arguments):
    """The recipe of the run that is to be evaluated."""
    if arguments.eval_only and arguments.init:
        for folder in (Path(arguments.init), Path(arguments.init).parent):
            if (folder / "recipe.yaml").is_file():
                return folder / "recipe.yaml"
    raise UserError("the following arguments are required: --cfg; --help lists what there is")
