"""A grid file -> its cells: the choices of each axis x seeds, each cell a complete recipe.

    recipe: ../recipes/base.yaml                       what all cells share,
    fixed: {stage.epochs: 100}                         and its changes for all of them
    axes:
      network: {ViT: {model.name: ...}, ...}           an axis: its choices, each with keys of a recipe, or with
                                                       `recipe`, a file in the place of the one above;
      stage.lr: [1.0e-3, 3.0e-3]                       or a key and its values. The last axis is the one that is judged:
    seeds: [0, 1, 2]                                   its first choice minus each other, seed by seed

Cells of one seed see the same images in the same order, with the same crops, flips and mixing, unless an axis changes
these; those of one network start from the same weights too.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from config.recipe import Recipe, load_recipe
from config.yaml_file import read_yaml
from ffcv_ops.errors import UserError
from ffcv_ops.options import nearest, parse_value

PARTS = ("recipe", "fixed", "axes", "seeds")
PLACE = ("seed", "log.name", "log.out")  # of a cell; log.out may be given for all cells


class Cell(NamedTuple):
    """One training run of the grid. `row`: its choices in all axes but the last."""

    row: str
    choice: str
    seed: int
    run: Recipe

    @property
    def folder(self) -> Path:
        return Path(self.run.log.out) / self.run.log.name

    @property
    def done(self) -> bool:
        """Whether its run came to its end."""
        return (self.folder / "report.md").exists()


class Grid(NamedTuple):
    """`axes`: what rows are called, and choices. `cells`: one seed after the other, so that what an interrupted grid
    has done is balanced."""

    folder: Path
    axes: tuple[str, str]
    rows: tuple[str, ...]
    choices: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


def read(path, overrides: Mapping[str, str] | None = None, of_weights: Mapping[str, Mapping] | None = None) -> Grid:
    """The grid of a file. `overrides`: keys of recipes that hold for all cells; those that cells vary are refused.
    `of_weights`: what `auto` stands for, as `load_recipe` takes it."""
    content = read_yaml(path)
    for name in content:
        if name not in PARTS:
            raise UserError(f"{path}: {name!r} is no part of a grid; the nearest is '{nearest(name, PARTS)}'")
    for name in ("recipe", "axes", "seeds"):
        if name not in content:
            raise UserError(f"{path}: a grid needs {name}:")
    if not isinstance(content["recipe"], str):
        raise UserError(f"{path}: recipe must be the name of a file")
    base = Path(path).parent / content["recipe"]
    axes = {name: _choices(path, name, value) for name, value in _mapping(path, "axes", content["axes"]).items()}
    fixed = _mapping(path, "fixed", content.get("fixed", {})) | (overrides or {})
    _keys_are_free(path, axes, fixed)
    seeds = _seeds(path, content["seeds"])
    folder = Path(load_recipe(base, fixed, of_weights).log.out) / Path(path).stem
    *outer, last = axes
    rows = {", ".join(names): names for names in itertools.product(*(axes[axis] for axis in outer))}
    if not outer:
        rows = {base.stem: ()}

    def cell(row, choice, seed):
        keys = dict(axes[last][choice])
        for axis, name in zip(outer, rows[row], strict=True):
            keys |= axes[axis][name]
        place = {"seed": str(seed), "log.out": str(folder), "log.name": f"{row.replace(', ', '_')}_{choice}_{seed}"}
        own = Path(path).parent / keys.pop("recipe") if "recipe" in keys else base
        run = load_recipe(own, fixed | keys | place, of_weights)
        return Cell(row, choice, seed, dataclasses.replace(run, source=str(path)))

    cells = [cell(row, choice, seed) for seed in seeds for row in rows for choice in axes[last]]
    return Grid(folder, (", ".join(outer) or "recipe", last), tuple(rows), tuple(axes[last]), seeds, tuple(cells))


def _mapping(path, name, value):
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} must hold keys, such as `{{stage.epochs: 100}}`, not {value!r:.60}")
    return value


def _choices(path, axis, value):
    """{choice: {key: value}} of an axis, which may also be a key with the list of its values."""
    if isinstance(value, list):
        names = ["-".join(map(str, one)) if isinstance(one, list) else str(one) for one in value]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: {axis}: a value appears twice")
        value = {name: {axis: one} for name, one in zip(names, value, strict=True)}
    if not value:
        raise UserError(f"{path}: {axis} is empty")
    return {name: _mapping(path, f"{axis}: {name}", keys) for name, keys in _mapping(path, axis, value).items()}


def _keys_are_free(path, axes, fixed):
    """UserError where a key is set in two places."""
    owners = dict.fromkeys(PLACE, "the grid itself")
    for axis, choices in axes.items():
        for name in dict.fromkeys(name for keys in choices.values() for name in keys):
            if name in owners:
                raise UserError(f"{path}: {axis}: {name} is set by {owners[name]} already")
            owners[name] = f"the axis {axis}"
    if not axes:
        raise UserError(f"{path}: axes is empty")
    for name in fixed:
        if name in owners and name != "log.out":
            raise UserError(f"{path}: {name} is what cells differ in; it cannot be set for all of them")


def _seeds(path, value):
    try:
        seeds = parse_value(tuple[int, ...], value, {"at least": 0, "at most": 2**53})
    except ValueError:
        raise UserError(f"{path}: seeds must be a list of whole numbers, not {value!r:.60}") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: a seed appears twice")
    return seeds
