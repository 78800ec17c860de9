"""Options: what a keyword or a key of a recipe may be, and what it is given, checked to the letter.

The declared type alone decides what a text means: `3e-3` is a number, `yes` and `0` are not truth values, `null` unsets
nothing (`none` does, where an option allows it), `16.7` is no whole number. Imports nothing heavy.
"""

import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ffcv_ops.errors import UserError, one_line

INVALID = object()  # the value of an option that was given one it cannot have
LONGEST_TEXT = 4096  # characters: Linux's longest path
MOST_ITEMS = 1000  # in a list
MOST_FAULTS = 20  # that are told at once
NO_LIMITS: Mapping = types.MappingProxyType({})


def limits(*, low=None, high=None, above=None, below=None) -> dict:
    """The range of an option's numbers, `low <= x <= high` and `above < x < below`; in a tuple, of each number."""
    return {"at least": low, "above": above, "at most": high, "below": below}


def nearest(word: str, known: Iterable[str]) -> str:
    """The most similar of the known words."""
    return difflib.get_close_matches(word, known, n=1, cutoff=0)[0]


def parse_value(kind, value, limits=NO_LIMITS):
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
    holds = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
    return all(holds[word](number, bound) for word, bound in limits.items() if bound is not None)


def describe_type(kind, limits=NO_LIMITS) -> str:
    """The type `kind` in words: 'a whole number at least 1', 'one of bce, ce'."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(part, limits) for part in parts)
    if origin is typing.Literal:
        return parts[0] if len(parts) == 1 else "one of " + ", ".join(parts)
    if origin is tuple:
        count = "" if parts[1:] == (Ellipsis,) else f" of {len(parts)}"
        return f"a list{count}, each {describe_type(parts[0], limits)}"
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


def parse_options(declared: Mapping[str, tuple[type, Mapping]], values: Mapping, where: str) -> tuple[dict, list[str]]:
    """The given options, typed, and what is wrong with others: the value of a faulty one is INVALID.

    declared: {name: (type, limits)}. `where` stands directly in front of an option's name in a complaint:
    `"recipes/demo.yaml: stage."`, `"--data."`, `"train_loader: "`."""
    typed, faults = {}, []
    for name, value in values.items():
        if name not in declared:
            shown = one_line(str(name))
            faults.append(f"{where}{shown} is not a key; the nearest is '{nearest(str(name), declared)}'")
            continue
        kind, limits = declared[name]
        try:
            typed[name] = parse_value(kind, value, limits)
        except (ValueError, OverflowError):
            typed[name] = INVALID
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:76] + " ..."
            faults.append(f"{where}{name} is {shown}; it must be {describe_type(kind, limits)}")
    return typed, faults


def refuse(faults: Sequence[str]) -> None:
    """UserError with a line for each fault, if there are any."""
    if faults:
        more = [f"and {len(faults) - MOST_FAULTS:,} more"] if len(faults) > MOST_FAULTS else []
        raise UserError("\n".join([*faults[:MOST_FAULTS], *more]))


class Keyword(NamedTuple):
    """A keyword of a function, beside its type: `Annotated[int, keyword(...)]` in a TypedDict."""

    help: str
    default: object
    limits: Mapping


def keyword(help: str, default, **of_numbers) -> Keyword:
    """A keyword with its line of help; of_numbers: as in `limits`."""
    return Keyword(help, default, limits(**of_numbers))


def keywords_of(cls) -> dict[str, tuple[type, Keyword]]:
    """{name: (type, Keyword)} of a TypedDict."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}


def complete(cls, given: Mapping, where: str) -> types.SimpleNamespace:
    """All keywords of the TypedDict `cls`, those that are not given with their defaults; `where` as in
    `parse_options`. UserError with a line for each fault."""
    declared = keywords_of(cls)
    typed, faults = parse_options({name: (kind, one.limits) for name, (kind, one) in declared.items()}, given, where)
    refuse(faults)
    return types.SimpleNamespace(**{name: one.default for name, (_, one) in declared.items()} | typed)
