"""Typed keys: dataclasses <-> text.

In: frozen dataclasses whose fields are declared with `key(...)`, YAML files, a command line. Out: instances of those
dataclasses, checked to the letter, or one `UserError` that names the place, the key and what it may hold.

Every YAML scalar is read as text and the declared type alone decides what it means, so that a file and the command
line follow the same rules: `3e-3` is a number, `yes` and `0` are not truth values, `null` unsets nothing (`none` does,
where a key allows it), `16.7` is no whole number.

fastargs declares the options `--section.key`. It is given neither values, files nor the environment: it would drop
unknown keys and let environment variables win. `--help` is config/help.py's.
"""

import argparse
import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import fastargs
import yaml

from ffcv_ops.errors import UserError


def key(help, *, low=None, high=None, above=None, below=None, default=dataclasses.MISSING, changes=None):
    """A dataclass field that is a key: its help text and the range of its numbers, `low <= x <= high` and
    `above < x < below`; in a tuple, of each number. A key without `default` must be given. changes: what --help lists
    it under ("result", "speed" or "records"), where that is not what its class says."""
    limits = {"at least": low, "above": above, "at most": high, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "limits": limits, "changes": changes})


def keys_of(cls):
    """{name: (type, field)} of the fields of `cls` that are keys."""
    types_of = typing.get_type_hints(cls)
    return {field.name: (types_of[field.name], field) for field in dataclasses.fields(cls) if "help" in field.metadata}


def paths(sections: Mapping[str, type]) -> list[str]:
    """The names of all keys: ["seed", "stage.epochs", ...]."""
    return [path(section, name) for section, cls in sections.items() for name in keys_of(cls)]


def path(section: str, name: str) -> str:
    """The name of a key on the command line; the section "" has none."""
    return f"{section}.{name}" if section else name


def title(cls) -> str:
    """What a section is, for --help: the first line of its docstring."""
    return cls.__doc__.partition("\n")[0].rstrip(".")


def changes(cls, field) -> str:
    """What a key changes: "result" unless the field or its class says "speed" or "records"."""
    return field.metadata["changes"] or getattr(cls, "changes", "result")


def is_value(default) -> bool:
    return default is not dataclasses.MISSING


# --- values --------------------------------------------------------------------------------------------------------


def take(kind, value, limits=types.MappingProxyType({})):
    """`value`, text or already typed, as an instance of the type `kind`; ValueError when it is not one."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for part in sorted(parts, key=lambda part: part is not types.NoneType):  # `none` before any text
            try:
                return take(part, value, limits)
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
        if isinstance(value, str) and value.strip() and value.lower() not in ("null", "~"):
            return value
    elif origin is tuple:
        return _take_tuple(parts, value, limits)
    raise ValueError


def _take_tuple(parts, value, limits):
    """Items from a list, or from text: `a, b` with or without brackets."""
    if isinstance(value, str):
        value = [item.strip() for item in re.sub(r"^\[(.*)\]$", r"\1", value.strip()).split(",")]
    if not isinstance(value, list | tuple):
        raise ValueError
    if parts[1:] == (Ellipsis,):
        parts = parts[:1] * max(1, len(value))
    if len(value) != len(parts):
        raise ValueError
    return tuple(take(part, item, limits) for part, item in zip(parts, value, strict=True))


def _within(number, limits):
    holds = {
        "at least": lambda bound: number >= bound,
        "above": lambda bound: number > bound,
        "at most": lambda bound: number <= bound,
        "below": lambda bound: number < bound,
    }
    return all(holds[word](bound) for word, bound in limits.items() if bound is not None)


def describe(kind, limits=types.MappingProxyType({})):
    """The type `kind` in words: 'a whole number at least 1', 'one of bce, ce'."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(part, limits) for part in parts)
    if origin is typing.Literal:
        return parts[0] if len(parts) == 1 else "one of " + ", ".join(parts)
    if origin is tuple:
        if parts[1:] != (Ellipsis,):
            return f"a list of {len(parts)}, each {describe(parts[0], limits)}"
        return f"a list, each {describe(parts[0], limits)}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "none",
    }
    bounds = [f" {word} {bound:g}" for word, bound in limits.items() if bound is not None]
    return words[kind] + (" and".join(bounds) if kind in (int, float) else "")


def spell(value):
    """A value as YAML text that `read_yaml` and `take` read back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(spell(item) for item in value) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z./][A-Za-z0-9./_-]*", value):
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=sys.maxsize).strip()
    return str(value)


# --- sections ------------------------------------------------------------------------------------------------------


def nearest(word, words):
    return difflib.get_close_matches(word, words, n=1, cutoff=0)[0]


def read(cls, values: Mapping, where: str) -> dict:
    """The given keys of one section, typed. `where` is written directly in front of a key's name in a complaint:
    `"recipes/demo.yaml: stage."`, `"--data."`."""
    schema, typed = keys_of(cls), {}
    for name, value in values.items():
        if name not in schema:
            raise UserError(f"{where}{_line(name)} is not a key; the nearest is '{nearest(str(name), schema)}'")
        kind, field = schema[name]
        limits = field.metadata["limits"]
        try:
            typed[name] = take(kind, value, limits)
        except (ValueError, OverflowError):
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:76] + " ..."
            raise UserError(f"{where}{name} is {shown}; it must be {describe(kind, limits)}") from None
    return typed


def build(cls, values: Mapping, where: str):
    """An instance of the dataclass `cls` from all of its keys; `where` as in `read`."""
    typed = read(cls, values, where)
    for name, (kind, field) in keys_of(cls).items():
        if name not in typed and field.default is dataclasses.MISSING:
            raise UserError(f"{where}{name} is missing; it must be {describe(kind, field.metadata['limits'])}")
    return cls(**typed)


def of_section(overrides: Mapping, section: str) -> dict:
    """The overrides of one section without its name: {"stage.lr": "1"} -> {"lr": "1"} for `stage`."""
    split = {path: path.rpartition(".") for path in overrides}
    return {name: overrides[path] for path, (prefix, _, name) in split.items() if prefix == section}


def _line(text):
    """Text from a user's file on one line."""
    text = str(text)
    return text if text.isprintable() else ascii(text)


# --- files ---------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Scalars stay text; keys that appear twice or are no words, aliases (which can blow up) and tags are refused."""

    yaml_implicit_resolvers: typing.ClassVar = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            problem = "aliases and tags are not allowed; write the value out"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", name.start_mark)
            if name.value in seen:
                problem = f"the key {name.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def read_yaml(path) -> dict:
    """The mapping in a YAML file: text, lists and mappings of text."""
    try:
        content = yaml.load(Path(path).read_bytes(), _StrictLoader)
    except OSError as error:
        raise UserError(f"{_line(path)} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{_line(path)}{line}: {_line(error.problem or error.context)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", "nested too deeply" if isinstance(error, RecursionError) else error)
        raise UserError(f"{_line(path)} is not YAML: {_line(reason)}") from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {'list' if isinstance(content, list) else 'single value'}"
        raise UserError(f"{_line(path)} {found}; it must hold sections of keys, such as `stage: {{epochs: 10}}`")
    return content


# --- command line --------------------------------------------------------------------------------------------------


class _Declarations(fastargs.Config):
    """fastargs' declarations, without its reading of sys.argv, files and environment variables."""

    def collect_argparse_args(self, parser, disable_help=False):
        return self


class _Parser(argparse.ArgumentParser):
    def add_argument(self, *names, **kwargs):
        if "--config-file" not in names:  # fastargs' own way to a file, which is not strict
            return super().add_argument(*names, **kwargs)

    def error(self, message):
        raise UserError(f"{_line(message)}; --help lists what there is")


class _Help(argparse.Action):
    """--help [WORD]: shows it through `const`, a function of the parser and the word, and ends."""

    def __call__(self, parser, namespace, word, option_string=None):
        self.const(parser, word if isinstance(word, str) else "")
        parser.exit()


def parse(
    description: str,
    sections: Mapping[str, type],
    defaults: Mapping[str, Mapping],
    options: Sequence[tuple[str, dict]] = (),
    argv: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, dict[str, str]]:
    """The command line: the plain `options`, (flag, keywords of add_argument), as a namespace, and the keys that were
    given as {"stage.epochs": "1"}, text that `read` or `build` will judge.

    sections: {"stage": Stage, ...}; the section "" holds keys without a prefix. defaults: {"stage": {"epochs": 400}},
    shown by --help only; without an entry a field's own default is shown.
    """
    argv = sys.argv[1:] if argv is None else list(argv)

    def show_help(parser, word):
        from config import help

        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        listed = [(_spelled(action), action.help or "") for action in shown]
        help.show(parser.usage % {"prog": parser.prog}, description, listed, sections, defaults, word)

    usage = "%(prog)s [options] [--section.key=value ...]"
    parser = _Parser(usage=usage, allow_abbrev=False, add_help=False)
    parser.add_argument(
        "--help", "-h", action=_Help, nargs="?", const=show_help, metavar="WORD", help="show this, or the keys of WORD"
    )
    for flag, keywords in options:
        parser.add_argument(flag, **keywords)
    config = _Declarations()
    for name, cls in sections.items():
        section = fastargs.Section(name, config_descriptor=config)
        section.ns = tuple(filter(None, [name]))  # fastargs would call a key of the unnamed section `.seed`
        config.add_section(section)
        section.params(**{row: fastargs.Param(fastargs.validation.Anything()) for row in keys_of(cls)})
    config.augment_argparse(parser)

    known = ["--help", *(flag for flag, _ in options), *(f"--{path}" for path in paths(sections))]
    for word in argv:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise UserError(f"{_line(flag)} is not an option; the nearest is {nearest(flag, known)}")
    given = vars(parser.parse_args(argv))
    texts = {path: given.pop(path) for path in paths(sections)}
    given.pop("help")
    return argparse.Namespace(**given), {path: text for path, text in texts.items() if text is not None}


def _spelled(action):
    """An option as --help lists it: `--cfg FILE`."""
    return " ".join(filter(None, [action.option_strings[0], action.metavar]))
