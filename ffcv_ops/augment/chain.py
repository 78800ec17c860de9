"""The recipe's words <-> augmentations in a row: `three(ops=gray+blur) | jitter(strength=0.3)`.

A name is that of a declaration in policies/, or FILE.py:NAME in a file of the user's own, its path relative to the
folder where the command is started, as the data's are. Such a file is executed by `load` alone, for what trains or
shows the augmentation. `pin` only puts the hash of its bytes behind the name, FILE.py:NAME@HASH: a recipe that was
pinned says which code it meant, and nothing is executed to read it.
"""

import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffcv_ops import rng
from ffcv_ops.augment import policies
from ffcv_ops.augment.declare import Augmentation, nearest
from ffcv_ops.compiled import kernel
from ffcv_ops.errors import UserError
from ffcv_ops.rng import RandomKey

NONE = "none"
_STEP = re.compile(r"(?P<name>[^()|@]+?)(@(?P<hash>[0-9a-f]{16}))?\s*(\((?P<options>[^()|]*)\))?")
_OWN = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


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
    found = {value.name: value for module in modules for value in vars(module).values() if _is_declared(value)}
    return dict(sorted(found.items()))


def _is_declared(value):
    return isinstance(value, Augmentation)


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
        own = _OWN.fullmatch(step.name)
        if own is None and step.name not in declared():
            known = [NONE, *declared()]
            advice = f"the nearest is '{nearest(step.name, known)}'"
            raise UserError(f"{step.name!r} is not an augmentation; {advice}; of a file of your own, FILE.py:NAME")
        steps.append(step if own else step._replace(options=tuple(_options(declared()[step.name], step).items())))
    names = [step.name for step in steps if step.name in declared()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} stands in the chain twice: both would draw the same numbers")
    return steps


def _pair(item):
    name, _, value = item.rpartition("=")
    return (name.strip(), value.strip())


def _options(augmentation, step) -> dict[str, str]:
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
    steps = parse(text)
    pinned = [
        step._replace(hash=step.hash or _hash(_file(step))) if _OWN.fullmatch(step.name) else step for step in steps
    ]
    return " | ".join(map(str, pinned)) or NONE


def _file(step) -> Path:
    return Path(_OWN.fullmatch(step.name)["file"])


def _hash(path):
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


class Loaded(NamedTuple):
    """A step that can run: its declaration, and the text of all its options."""

    augmentation: Augmentation
    options: dict[str, str]
    own: bool  # from a file of the user's


def load(text: str) -> list[Loaded]:
    """The augmentations of a chain. Executes the files that it names; what is wrong with one is a UserError."""
    loaded = []
    for step in parse(text):
        own = _OWN.fullmatch(step.name)
        augmentation = _from_file(_file(step), own["name"], step.hash) if own else declared()[step.name]
        loaded.append(Loaded(augmentation, _options(augmentation, step), bool(own)))
    return loaded


def _from_file(path, name, wanted):
    found = _hash(path)
    if wanted not in (None, found):
        raise UserError(
            f"{path} is not what the recipe was resolved with (hash {wanted}, now {found}); restore it, or start a run"
            " of its own"
        )
    module = _execute(path.resolve(), found)
    value = getattr(module, name, None)
    if not _is_declared(value):
        names = [known for known, value in vars(module).items() if _is_declared(value)]
        advice = f"the nearest is '{nearest(name, names)}'" if names else "it holds no @augmentation"
        raise UserError(f"{path}: {name} is not an augmentation in it; {advice}")
    return value


@cache
def _execute(path, hash):
    """The module of a user's file. One for each content: Numba's cache looks at the file, ours at what is in memory."""
    module_name = f"augmentations_of_{path.stem}_{hash}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise UserError(f"{path}, line {lines[-1] if lines else 1}: {type(error).__name__}: {error}") from None
    return module


class Compiled(NamedTuple):
    """A chain as what the kernels read: for each step a C callback and where its options begin."""

    callbacks: np.ndarray = np.empty(0, np.int64)  # [steps], addresses
    offsets: np.ndarray = np.empty(0, np.int64)  # [steps], into `options`, bytes
    own: np.ndarray = np.empty(0, np.bool_)  # [steps]: draws under a key of its own
    options: np.ndarray = np.empty(0, np.uint8)
    is_gray: int = 0  # address of the first step's answer


def compiled(chain: list[Loaded], interpolation: int) -> Compiled:
    """Compiles what of the chain is not compiled yet. interpolation: resample's number. UserError."""
    records = [one.augmentation.record(one.options, interpolation) for one in chain]
    sizes = [-(-record.dtype.itemsize // 16) * 16 for record in records]
    options = np.zeros(sum(sizes) + 16, np.uint8)
    begins = np.cumsum([0, *sizes])[: len(sizes)]
    for begin, record in zip(begins, records, strict=True):
        options[begin : begin + record.dtype.itemsize] = np.frombuffer(record.tobytes(), np.uint8)
    first = chain[0].augmentation if chain else None
    return Compiled(
        np.array([_compile(one.augmentation, "callback") for one in chain], np.int64),
        begins.astype(np.int64),
        np.array([one.own for one in chain], np.bool_),
        options,
        _compile(first, "is_gray_callback") if first and first.is_gray else 0,
    )


def _compile(augmentation, which):
    """The address of an augmentation's callback; what Numba finds wrong is one line that names the place."""
    from numba.core.errors import NumbaError

    try:
        return getattr(augmentation, which).address
    except NumbaError as error:
        raise UserError(_complaint(error, augmentation.kernel.py_func)) from None


def _complaint(error, function):
    """Numba's pages in one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    code = function.__code__
    lines = re.findall(r'File "([^"]+)", line (\d+)', text)
    here = [int(line) for file, line in lines if Path(file).name == Path(code.co_filename).name]
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("Failed in", "File"))]
    place = f"{code.co_filename}, line {here[-1] if here else code.co_firstlineno}"
    return f"{place}: {function.__name__} cannot be compiled: {said[0] if said else type(error).__name__}"


def key_of(place: int, own: bool, key: RandomKey) -> RandomKey:
    """The key of a step: the sample's, or for a user's own augmentation one that no other step has."""
    return own_key(place, key) if own else key


@kernel
def own_key(place, key):
    return RandomKey(np.int64(rng.bits(key, rng.OWN + place) >> np.uint64(1)), key.sample_id)


def words(chain: list[Loaded], interpolation: int, height: int, width: int, key: RandomKey) -> list[str]:
    """What happens to one sample, for people."""
    said = []
    for place, (augmentation, options, own) in enumerate(chain):
        if augmentation.words is None:
            said.append(augmentation.name)
        else:
            record = augmentation.record(options, interpolation)
            said += augmentation.words(record, height, width, key_of(place, own, key))
    return said


def reference(chain: list[Loaded], interpolation: int, image, key: RandomKey):
    """The chain on a Pillow image by other people's code, which each step must declare."""
    for place, (augmentation, options, own) in enumerate(chain):
        record = augmentation.record(options, interpolation)
        image = augmentation.reference(image, record, key_of(place, own, key))
    return image


def help_text() -> str:
    """What the key `augment` may be: every declared augmentation with its options and their defaults."""
    said = []
    for augmentation in declared().values():
        options = [f"{name}={option.default}" for name, option in augmentation.options.items()]
        said.append(augmentation.name + (f"({', '.join(options)})" if options else ""))
    return f"{NONE}, FILE.py:NAME, or {', '.join(said)}; a | b: one after the other"


def text_of(stage) -> str:
    """The whole chain of a stage: `augment`, then what the keys `jitter` and `erasing` add."""
    parts = [stage.augment] if stage.augment != NONE else []
    parts += [f"jitter({stage.jitter:g})"] if stage.jitter else []
    parts += [f"erase({stage.erasing:g}, {stage.erasing_mode})"] if stage.erasing else []
    return " | ".join(parts) or NONE


def describe(stage) -> str:
    """What happens to a training sample of this stage in a line: `rrc(224) | flip(.5) | three(gray, blur)`."""
    steps = [f"{stage.crop}({stage.resolution})"] + ([f"flip({_short(stage.flip)})"] if stage.flip else [])
    for step in parse(text_of(stage)):
        inside = ", ".join(_short(value) for _, value in step.options)
        steps.append(step.name + (f"({inside})" if inside else ""))
    return " | ".join(steps)


def _short(value):
    """0.5 -> .5, gray+blur -> gray, blur."""
    return re.sub(r"^0\.", ".", str(value)).replace("+", ", ")
