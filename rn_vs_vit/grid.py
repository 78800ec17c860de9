"""A grid file -> its cells: networks x augmentations x seeds, each a complete recipe.

    recipe: ../recipes/base.yaml                   what all cells share,
    fixed: {stage.epochs: 100}                     and its changes for all of them
    networks: {ViT: {model.name: ...}, ...}        keys of NETWORK, nothing else
    augmentations: {3-Augment: {augment: three}}   keys of AUGMENTATION; the first is the one that is compared
    seeds: [0, 1, 2]                               the same for every network and augmentation: results are paired

Cells of one seed see the same images in the same order, with the same crops, flips and mixing; those of one network
start from the same weights too.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from config.recipe import Recipe, load_recipe
from config.yaml_file import read_yaml
from ffcv_ops.errors import UserError
from ffcv_ops.options import nearest, parse_value


def _key(name):
    """The key of a recipe that `name` of an augmentation is: the stage's, but for precision."""
    return name if "." in name else f"stage.{name}"


NETWORK = ("model.name", "model.layer_scale", "model.blur_pool", "stage.lr", "stage.weight_decay", "stage.drop_path")
AUGMENTATION = ("augment", "jitter", "erasing", "erasing_mode", "speed.precision")
VARIED = (*NETWORK, *map(_key, AUGMENTATION), "seed", "log.name")


class Cell(NamedTuple):
    """One training run of the grid."""

    network: str
    augmentation: str
    seed: int
    run: Recipe

    @property
    def folder(self) -> Path:
        return Path(self.run.log.out) / self.run.log.name


class Grid(NamedTuple):
    """`cells`: one seed after the other, so that what an interrupted grid has done is balanced."""

    folder: Path
    networks: tuple[str, ...]
    augmentations: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


def read(path, overrides: Mapping[str, str] | None = None) -> Grid:
    """The grid of a file. `overrides`: keys of recipes that hold for all cells; those that cells vary are refused."""
    content = read_yaml(path)
    parts = ("recipe", "fixed", "networks", "augmentations", "seeds")
    for name in content:
        if name not in parts:
            raise UserError(f"{path}: {name!r} is no part of a grid; the nearest is '{nearest(name, parts)}'")
    for name in ("recipe", "networks", "augmentations", "seeds"):
        if name not in content:
            raise UserError(f"{path}: a grid needs {name}:")
    fixed = _mapping(path, "fixed", content.get("fixed", {})) | (overrides or {})
    for name in fixed:
        if name in VARIED:
            raise UserError(f"{path}: {name} is what cells differ in; it cannot be set for all of them")
    networks = _choices(path, "networks", content["networks"], NETWORK)
    augmentations = _choices(path, "augmentations", content["augmentations"], AUGMENTATION)
    seeds = _seeds(path, content["seeds"])
    base = Path(path).parent / content["recipe"]
    folder = Path(load_recipe(base, fixed).log.out) / Path(path).stem

    def cell(network, augmentation, seed):
        own = networks[network] | {_key(name): value for name, value in augmentations[augmentation].items()}
        place = {"seed": str(seed), "log.out": str(folder), "log.name": f"{network}_{augmentation}_{seed}"}
        run = load_recipe(base, fixed | own | place)
        return Cell(network, augmentation, seed, dataclasses.replace(run, source=str(path)))

    cells = [cell(net, augment, seed) for seed in seeds for net in networks for augment in augmentations]
    return Grid(folder, tuple(networks), tuple(augmentations), seeds, tuple(cells))


def _mapping(path, name, value):
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} must hold keys, such as `{{stage.epochs: 100}}`, not {value!r:.60}")
    return value


def _choices(path, part, value, allowed):
    rows = _mapping(path, part, value)
    for name, row in rows.items():
        for key in _mapping(path, f"{part}: {name}", row):
            if key not in allowed:
                free = ", ".join(allowed)
                raise UserError(f"{path}: {part}: {name}: {key} must be the same in all cells; free are {free}")
    if not rows:
        raise UserError(f"{path}: {part} is empty")
    return rows


def _seeds(path, value):
    try:
        seeds = parse_value(tuple[int, ...], value, {"at least": 0, "at most": 2**53})
    except ValueError:
        raise UserError(f"{path}: seeds must be a list of whole numbers, not {value!r:.60}") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: a seed appears twice")
    return seeds
