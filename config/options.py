"""Config options: a dataclass declares them, text becomes their values and values become text.

In: frozen dataclasses whose fields are declared with `option(...)`, and text or lists for them. Out: instances of those
dataclasses, checked to the letter, or a `UserError` with a line for each fault: the place, the option, what it may be.

The declared type alone decides what a text means, so that a file and the command line follow the same rules: `3e-3` is
a number, `yes` and `0` are not truth values, `null` unsets nothing (`none` does, where an option allows it), `16.7` is
no whole number.
"""

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Hashable, Mapping, Sequence

import yaml

from config.text import nearest
from ffcv_ops.errors import UserError, one_line

INVALID = object()  # the value of an option that was given one it cannot have
LONGEST_TEXT = 4096  # characters: Linux's longest path
MOST_ITEMS = 1000  # in a list
MOST_FAULTS = 20  # that are told at once


def option(help, *, low=None, high=None, above=None, below=None, default=dataclasses.MISSING, changes=None):
    """A dataclass field that is an option: its help text and the range of its numbers, `low <= x <= high` and
    `above < x < below`; in a tuple, of each number. An option without `default` must be given. changes: what --help
    lists it under ("result", "speed" or "records"), where that is not what its class says."""
    limits = {"at least": low, "above": above, "at most": high, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "limits": limits, "changes": changes})


def options_of(cls) -> dict[str, tuple[type, dataclasses.Field]]:
    """{name: (type, field)} of the fields of `cls` that are options."""
    types_of = typing.get_type_hints(cls)
    return {field.name: (types_of[field.name], field) for field in dataclasses.fields(cls) if "help" in field.metadata}


def all_names(sections: Mapping[str, type]) -> list[str]:
    """The names of all options: ["seed", "stage.epochs", ...]."""
    return [full_name(section, name) for section, cls in sections.items() for name in options_of(cls)]


def full_name(section: str, name: str) -> str:
    """The name of an option on the command line; the section "" has none."""
    return f"{section}.{name}" if section else name


def changes(cls, field) -> str:
    """What an option changes: "result" unless the field or its class says "speed" or "records"."""
    return field.metadata["changes"] or getattr(cls, "changes", "result")


# --- values --------------------------------------------------------------------------------------------------------


def parse_value(kind, value, limits=types.MappingProxyType({})):
    """`value`, text or already typed, as an instance of the type `kind`; ValueError when it is not one."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for part in sorted(parts, key=lambda part: part is not types.NoneType):  # `none` before any text
            try:
                return parse_value(part, value, limits)
            except ValueError:
                continue
    elif kind is types.NoneType:
        if value is None or value == "none":
            return None
    elif origin is typing.Literal:
        if isinstance(value, Hashable) and value in parts:
            return value
    elif kind is bool:
        word = value.lower() if isinstance(value, str) else value
        if isinstance(word, bool) or word in ("true", "false"):
            return word in (True, "true")
    elif kind is int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            value = int(value)
        if type(value) is int and _within(value, limits):
            return value
    elif kind is float:
        if isinstance(value, str) and "_" not in value:
            value = float(value)
        if type(value) in (int, float) and math.isfinite(value) and _within(value, limits):
            return float(value)
    elif kind is str:
        if isinstance(value, str) and 0 < len(value.strip()) <= LONGEST_TEXT and value.lower() not in ("null", "~"):
            return value
    elif origin is tuple:
        return _parse_tuple(parts, value, limits)
    raise ValueError


def _parse_tuple(parts, value, limits):
    """Items from a list, or from text: `a, b` with or without brackets."""
    if isinstance(value, str):
        value = [item.strip() for item in re.sub(r"^\[(.*)\]$", r"\1", value.strip()).split(",")]
    if not isinstance(value, list | tuple) or len(value) > MOST_ITEMS:
        raise ValueError
    if parts[1:] == (Ellipsis,):
        parts = parts[:1] * max(1, len(value))
    if len(value) != len(parts):
        raise ValueError
    return tuple(parse_value(part, item, limits) for part, item in zip(parts, value, strict=True))


def _within(number, limits):
    holds = {
        "at least": lambda bound: number >= bound,
        "above": lambda bound: number > bound,
        "at most": lambda bound: number <= bound,
        "below": lambda bound: number < bound,
    }
    return all(holds[word](bound) for word, bound in limits.items() if bound is not None)


def describe_type(kind, limits=types.MappingProxyType({})) -> str:
    """The type `kind` in words: 'a whole number at least 1', 'one of bce, ce'."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(part, limits) for part in parts)
    if origin is typing.Literal:
        return parts[0] if len(parts) == 1 else "one of " + ", ".join(parts)
    if origin is tuple:
        if parts[1:] != (Ellipsis,):
            return f"a list of {len(parts)}, each {describe_type(parts[0], limits)}"
        return f"a list, each {describe_type(parts[0], limits)}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "none",
    }
    bounds = [
        f" {word} {bound:,}" if isinstance(bound, int) else f" {word} {bound:g}"
        for word, bound in limits.items()
        if bound is not None
    ]
    return words[kind] + (" and".join(bounds) if kind in (int, float) else "")


def to_yaml(value) -> str:
    """A value as YAML text that `read_yaml` and `parse_value` read back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_yaml(item) for item in value) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z./][A-Za-z0-9./_-]*", value):
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=sys.maxsize).strip()
    return str(value)


# --- sections ------------------------------------------------------------------------------------------------------


def parse_options(cls, values: Mapping, where: str) -> tuple[dict, list[str]]:
    """The given options of one section, typed, and what is wrong with others: the value of a faulty one is INVALID.
    `where` stands directly in front of an option's name in a complaint: `"recipes/demo.yaml: stage."`, `"--data."`."""
    declared, typed, faults = options_of(cls), {}, []
    for name, value in values.items():
        if name not in declared:
            faults.append(f"{where}{one_line(name)} is not a key; the nearest is '{nearest(str(name), declared)}'")
            continue
        kind, field = declared[name]
        limits = field.metadata["limits"]
        try:
            typed[name] = parse_value(kind, value, limits)
        except (ValueError, OverflowError):
            typed[name] = INVALID
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:76] + " ..."
            faults.append(f"{where}{name} is {shown}; it must be {describe_type(kind, limits)}")
    return typed, faults


def missing(cls, values: Mapping, where: str) -> list[str]:
    """A complaint for each option that has no value; `where` as in `parse_options`."""
    return [
        f"{where}{name} is missing; it must be {describe_type(kind, field.metadata['limits'])}"
        for name, (kind, field) in options_of(cls).items()
        if name not in values and field.default is dataclasses.MISSING
    ]


def build(cls, values: Mapping, where: str):
    """An instance of the dataclass `cls` from all of its options; `where` as in `parse_options`."""
    typed, faults = parse_options(cls, values, where)
    refuse(faults + missing(cls, typed, where))
    return cls(**typed)


def refuse(faults: Sequence[str]) -> None:
    """UserError with a line for each fault, if there are any."""
    if faults:
        more = [f"and {len(faults) - MOST_FAULTS:,} more"] if len(faults) > MOST_FAULTS else []
        raise UserError("\n".join([*faults[:MOST_FAULTS], *more]))


def select(given: Mapping, section: str) -> dict:
    """What is given for one section, without its name: {"stage.lr": "1"} -> {"lr": "1"} for `stage`."""
    split = {path: path.rpartition(".") for path in given}
    return {name: given[path] for path, (prefix, _, name) in split.items() if prefix == section}
