"""YAML + command line -> one frozen `Recipe`.

In: a recipe's path and the command line's overrides, {"stage.epochs": "1"}. Out: `Recipe`, in which every option has a
value of its declared type, or a `UserError` with a line for each fault.

recipes/base.yaml holds every option. A recipe names it, or another recipe (`base: base.yaml`, relative to the recipe),
and holds what differs. `stages:` is a list of rows, each a delta on `stage:`; without it the run has the stages of the
base, or one. The later wins: base, with its rows < the recipe's `stage:` < stage row < command line. What a recipe says
in `stage:`, or the command line, therefore applies to every stage that is not its own row.
A recipe without `base:` must be complete by itself, as the resolved recipe of a run folder is.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from config.options import all_names, full_name, missing, options_of, parse_options, select, to_yaml
from config.rules import broken_rules
from config.schema import SECTIONS, WITHOUT_WEIGHTS, GeneralConfig, Recipe, StageConfig
from config.yaml_file import read_yaml
from ffcv_ops.augment import chain
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.options import INVALID, nearest, refuse

BASE_RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "base.yaml"
MOST_MISSING = 5  # options that are named one by one


def base_values() -> dict[str, dict]:
    """The values of base.yaml by section."""
    return _read_file(BASE_RECIPE, []).sections


def load_recipe(
    path, overrides: Mapping[str, str] | None = None, of_weights: Mapping[str, Mapping] | None = None
) -> Recipe:
    """The recipe of a file and the command line's overrides: each option by itself, then what they are to each other.
    of_weights: {section: {option: value}}, what `auto` stands for. All faults are reported at once."""
    faults, auto = [], {}
    for section_name, values in WITHOUT_WEIGHTS.items():
        found, wrong = parse_options(SECTIONS[section_name], (of_weights or {}).get(section_name, {}), "--init: its ")
        auto[section_name] = values | found
        faults += wrong
    file, last = _read_with_base(path, faults), _read_overrides(overrides or {}, faults)
    sections = file.sections

    lacking = {}  # stages lack the same: each complaint once, in order

    def section(name, row):
        values = sections[name] | row | last[name]
        values |= {key: value for key, value in auto.get(name, {}).items() if values.get(key) == "auto"}
        lacking.update(dict.fromkeys(missing(SECTIONS[name], values, _where(path, name))))
        return _partial(SECTIONS[name], values)

    parts = vars(section("", {})) | {name: section(name, {}) for name in ("data", "model", "speed", "log")}
    stages = tuple(_pinned(section("stage", row)) for row in file.rows or [{}])
    recipe = _partial(Recipe, parts | {"stages": stages, "source": str(path)})
    if len(lacking) > MOST_MISSING:
        first = next(iter(lacking)).removeprefix(f"{one_line(path)}: ").partition(" ")[0]
        advice = "a recipe without `base: base.yaml` must hold all"
        lacking = [f"{one_line(path)}: {len(lacking)} keys are missing, the first is {first}; {advice}"]
    refuse([*faults, *lacking, *broken_rules(recipe)])
    return recipe


def _partial(cls, values: Mapping):
    """An instance of the frozen dataclass `cls`; options whose value was refused are no attributes of it."""
    made = object.__new__(cls)
    for name, value in values.items():
        if value is not INVALID:
            object.__setattr__(made, name, value)
    return made


def _pinned(stage):
    """The stage with its augmentations in their one spelling and the hash of those in files of the user's own."""
    with contextlib.suppress(AttributeError, UserError):  # it was refused, or a rule will
        object.__setattr__(stage, "augment", chain.pin(stage.augment))
    return stage


def render_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: what its stages share under `stage:`, what differs in the rows of `stages:`. It
    depends on the options alone, and `load_recipe` of it gives an equal recipe."""
    rows = [dataclasses.asdict(stage) for stage in recipe.stages]
    shared = {name: value for name, value in rows[0].items() if all(row[name] == value for row in rows)}
    text = "".join(f"{name}: {to_yaml(getattr(recipe, name))}\n" for name in options_of(GeneralConfig))
    for name in ("data", "model", "speed", "log"):
        text += _block(name, dataclasses.asdict(getattr(recipe, name)))
    text += _block("stage", shared)
    if len(rows) > 1:
        text += "stages:\n"
        for row in rows:
            own = [f"{name}: {to_yaml(value)}\n" for name, value in row.items() if name not in shared]
            text += "- " + "  ".join(own)
    return text


def _block(name, values):
    head = f"{name}:\n" if values else ""  # two stages may share nothing
    return head + "".join(f"  {row}: {to_yaml(value)}\n" for row, value in values.items())


def result_changing_options(recipe: Recipe) -> dict[str, object]:
    """The options that change results, by a name that says where: `seed`, `model.name`, `stage pretrain_224: lr`."""
    options = {"seed": recipe.seed, "speed.drop_path": recipe.speed.drop_path}
    options |= {f"model.{name}": value for name, value in dataclasses.asdict(recipe.model).items()}
    options["stages"] = [stage.name for stage in recipe.stages]
    for stage in recipe.stages:
        options |= {f"stage {stage.name}: {name}": getattr(stage, name) for name in options_of(StageConfig)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def result_changing_diff(before: Recipe, after: Recipe) -> str:
    """The first difference between two recipes among the options that change results, in words; "" if there is none."""
    old, new = result_changing_options(before), result_changing_options(after)
    if old["stages"] != new["stages"]:
        return f"stages {', '.join(old['stages'])}, not {', '.join(new['stages'])}"
    return next((f"{name} {old[name]}, not {new[name]}" for name in old if old[name] != new[name]), "")


# --- reading -------------------------------------------------------------------------------------------------------


class _File(NamedTuple):
    """One YAML file, typed, with the options that it gives."""

    sections: dict[str, dict]  # "" holds the options without a section
    rows: list[dict] | None
    base: str | None


def _where(path, section):
    """What stands in front of an option's name in a complaint about a file."""
    return f"{one_line(path)}: {full_name(section, '')}"


def _read_with_base(path, faults: list[str], above=()) -> _File:
    """A file over its base, and that over its own. above: the files that are built on this one."""
    file, here = _read_file(path, faults), Path(path).resolve()
    if here in above:
        raise UserError(f"{one_line(path)}: its `base:` leads back to this file; one of them must do without")
    if file.base is None:
        if not here.with_name("run.json").exists():
            return file
        newer = base_values()  # keys that came after a run was written; base.yaml gives them what was so before
        return file._replace(sections={name: newer[name] | file.sections[name] for name in SECTIONS})
    base = _read_with_base(Path(path).parent / file.base, faults, (*above, here))
    own = file.sections["stage"]
    inherited = [{name: value for name, value in row.items() if name not in own} for row in base.rows or ()]
    sections = {name: base.sections[name] | file.sections[name] for name in SECTIONS}
    return _File(sections, file.rows or inherited or None, None)


def _read_file(path, faults: list[str]) -> _File:
    """Appends to `faults` what is wrong; UserError where nothing can be read."""
    content, place = read_yaml(path), one_line(path)
    rows, base = content.pop("stages", None), content.pop("base", None)
    sections = {name: content.pop(name, {}) for name in SECTIONS if name}
    for name in [name for name in content if name not in options_of(GeneralConfig)]:
        homes = [part for part in sections if name in options_of(SECTIONS[part])]
        known = ["base", "stages", *options_of(GeneralConfig), *sections]
        advice = f"it belongs under `{homes[0]}:`" if homes else f"the nearest is '{nearest(name, known)}'"
        faults.append(f"{place}: {name!r} is not a section; {advice}")
        del content[name]
    sections[""] = content
    if base is not None and not isinstance(base, str):
        raise UserError(f"{place}: base must be the name of one file beside this one")
    typed = {}
    for name, values in sections.items():
        if not isinstance(values, dict):
            faults.append(f"{place}: {name} must hold keys, such as `{name}: {{key: value}}`, not {values!r:.60}")
            values = {}
        typed[name], wrong = parse_options(SECTIONS[name], values, _where(path, name))
        faults += wrong
    return _File(typed, None if rows is None else _read_rows(place, rows, faults), base)


def _read_rows(place, rows, faults):
    if not isinstance(rows, list) or not rows:
        faults.append(f"{place}: stages must be a list of rows, `- {{name: ...}}`; for one stage leave it out")
        return None
    typed = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            values, wrong = parse_options(StageConfig, row, f"{place}: stages row {number}: ")
            typed.append(values)
            faults += wrong
        else:
            faults.append(f"{place}: stages row {number} must hold keys of `stage:`, not {row!r:.60}")
    return typed or None


def _read_overrides(overrides, faults):
    known, typed = all_names(SECTIONS), {}
    unknown = [name for name in overrides if name not in known]
    faults += [f"--{name} is not a key; the nearest is --{nearest(name, known)}" for name in unknown]
    for section, cls in SECTIONS.items():
        given = {name: text for name, text in select(overrides, section).items() if name in options_of(cls)}
        typed[section], wrong = parse_options(cls, given, f"--{full_name(section, '')}")
        faults += wrong
    return typed
