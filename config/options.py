"""Config options: a dataclass declares them, text becomes their values and values become text.

In: frozen dataclasses whose fields are declared with `option(...)`, and text or lists for them. Out: instances of those
dataclasses, checked to the letter, or a `UserError` with a line for each fault: the place, the option, what it may be.

What a text means, the declared type alone decides (ffcv_ops/options.py), for a file as for the command line.
"""

import dataclasses
import re
import sys
import typing
from collections.abc import Mapping

import yaml

from ffcv_ops import options
from ffcv_ops.options import describe_type, refuse


def option(help, *, low=None, high=None, above=None, below=None, default=dataclasses.MISSING, changes=None):
    """A dataclass field that is an option: its help text and the range of its numbers, `low <= x <= high` and
    `above < x < below`; in a tuple, of each number. An option without `default` must be given. changes: what --help
    lists it under ("result", "speed" or "records"), where that is not what its class says."""
    limits = options.limits(low=low, high=high, above=above, below=below)
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
    """The given options of one section, typed, and what is wrong with others; `where` as in `options.parse_options`."""
    declared = {name: (kind, field.metadata["limits"]) for name, (kind, field) in options_of(cls).items()}
    return options.parse_options(declared, values, where)


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


def select(given: Mapping, section: str) -> dict:
    """What is given for one section, without its name: {"stage.lr": "1"} -> {"lr": "1"} for `stage`."""
    split = {path: path.rpartition(".") for path in given}
    return {name: given[path] for path, (prefix, _, name) in split.items() if prefix == section}
