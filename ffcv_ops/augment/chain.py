"""The recipe's words <-> augmentations in a row: `three(ops=gray+blur) | jitter(strength=0.3)`.

A name is that of a declaration in policies/, or FILE.py:NAME in a file of the user's own, its path relative to the
folder where the command is started, as the data's are. Such a file is executed by load.py alone, for what trains or
shows the augmentation. `pin` only puts the hash of its bytes behind the name, FILE.py:NAME@HASH: a recipe that was
pinned says which code it meant, and nothing is executed to read it.
"""

import hashlib
import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ffcv_ops.augment import policies
from ffcv_ops.augment.declare import Augmentation
from ffcv_ops.errors import UserError
from ffcv_ops.files import read_regular
from ffcv_ops.options import nearest

NONE = "none"
_STEP = re.compile(r"(?P<name>[^()|@]+?)(@(?P<hash>[0-9a-f]{16}))?\s*(\((?P<options>[^()|]*)\))?")
OWN = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


class Step(NamedTuple):
    """One augmentation of a chain, as text."""

    name: str  # a declared one's, or FILE.py:NAME
    hash: str | None  # of the user's file; None: not pinned, or not in a file
    options: tuple[tuple[str, str], ...]  # those given; a value without a name has the name ""

    def __str__(self):
        inside = ", ".join(f"{name}={value}" if name else value for name, value in self.options)
        return self.name + (f"@{self.hash}" if self.hash else "") + (f"({inside})" if inside else "")


@cache
def declared() -> dict[str, Augmentation]:
    """All augmentations of policies/, by name."""
    names = [module.name for module in pkgutil.iter_modules(policies.__path__)]
    modules = [importlib.import_module(f"{policies.__name__}.{name}") for name in names]
    values = [value for module in modules for value in vars(module).values()]
    found = {value.name: value for value in values if isinstance(value, Augmentation)}
    return dict(sorted(found.items()))


def parse(text: str) -> list[Step]:
    """The steps of a chain; those of policies/ with every option in its one spelling. UserError."""
    if text.strip() == NONE:
        return []
    steps = []
    for part in text.split("|"):
        match = _STEP.fullmatch(part.strip())
        if match is None:
            raise UserError(f"{part.strip()!r} must read like three, three(ops=gray+blur) or mine.py:name(strength=2)")
        pairs = [_pair(item) for item in match["options"].split(",")] if (match["options"] or "").strip() else []
        step = Step(match["name"].strip(), match["hash"], tuple(pairs))
        own = OWN.fullmatch(step.name)
        if own is None and step.name not in declared():
            advice = f"the nearest is '{nearest(step.name, [NONE, *declared()])}'"
            raise UserError(f"{step.name!r} is not an augmentation; {advice}; of a file of your own, FILE.py:NAME")
        steps.append(step if own else step._replace(options=tuple(options_of(declared()[step.name], step).items())))
    names = [step.name for step in steps if step.name in declared()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} stands in the chain twice: both would draw the same numbers")
    return steps


def _pair(item):
    name, _, value = item.rpartition("=")
    return (name.strip(), value.strip())


def options_of(augmentation, step) -> dict[str, str]:
    """The text of all options of a step. A first value without a name is the first option's, and so on."""
    given = {}
    for place, (name, value) in enumerate(step.options):
        if not name and place >= len(augmentation.options):
            raise UserError(f"{step.name} has {len(augmentation.options)} options, not {value!r} too")
        name = name or list(augmentation.options)[place]
        if name in given:
            raise UserError(f"{step.name}: {name} is given twice")
        given[name] = value
    return augmentation.spelled(given)


def pin(text: str) -> str:
    """The chain in its one spelling, with the hash of each file of the user's own. Executes nothing."""
    pinned = [
        step._replace(hash=step.hash or hash_of(Path(own["file"]))) if (own := OWN.fullmatch(step.name)) else step
        for step in parse(text)
    ]
    return " | ".join(map(str, pinned)) or NONE


def hash_of(path):
    return hashlib.sha256(read_regular(path)).hexdigest()[:16]


def help_text() -> str:
    """What the key `augment` may be: every declared augmentation with its options and their defaults."""
    said = []
    for augmentation in declared().values():
        options = [f"{name}={option.default}" for name, option in augmentation.options.items()]
        said.append(augmentation.name + (f"({', '.join(options)})" if options else ""))
    return f"{NONE}, FILE.py:NAME, or {', '.join(said)}; a | b: one after the other"


def text_of(augment: str, *, color_jitter: float | None, erasing: float, erasing_mode: str) -> str:
    """The whole chain: `augment`, then what color jitter and random erasing add."""
    parts = [augment] if augment != NONE else []
    parts += [f"jitter({color_jitter:g})"] if color_jitter else []
    parts += [f"erase({erasing:g}, {erasing_mode})"] if erasing else []
    return " | ".join(parts) or NONE
