"""The augmentations of a chain, ready to run: declarations, those of users' files too, their options, machine code."""

import dis
import importlib.util
import re
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffcv_ops import rng
from ffcv_ops.augment import chain
from ffcv_ops.augment.declare import Augmentation
from ffcv_ops.compiled import kernel
from ffcv_ops.errors import UserError
from ffcv_ops.options import nearest
from ffcv_ops.rng import RandomKey


class Loaded(NamedTuple):
    """A step that can run: its declaration, and the text of all its options."""

    augmentation: Augmentation
    options: dict[str, str]
    own: bool  # from a file of the user's


def from_text(text: str) -> list[Loaded]:
    """The augmentations of a chain. Executes the files that it names; what is wrong with one is a UserError."""
    loaded = []
    for step in chain.parse(text):
        own = chain.OWN.fullmatch(step.name)
        augmentation = _from_file(Path(own["file"]), own["name"], step.hash) if own else chain.declared()[step.name]
        loaded.append(Loaded(augmentation, chain.options_of(augmentation, step), bool(own)))
    return loaded


def _from_file(path, name, wanted):
    found = chain.hash_of(path)
    if wanted not in (None, found):
        raise UserError(
            f"{path} is not what the recipe was resolved with (hash {wanted}, now {found}); restore it, or start a run"
            " of its own"
        )
    module = _execute(path.resolve(), found)
    value = getattr(module, name, None)
    if not isinstance(value, Augmentation):
        names = [known for known, value in vars(module).items() if isinstance(value, Augmentation)]
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


def compiled(loaded: list[Loaded], interpolation: int) -> Compiled:
    """Compiles what of the chain is not compiled yet. interpolation: resample's number. UserError."""
    records = [one.augmentation.record(one.options, interpolation) for one in loaded]
    sizes = [-(-record.dtype.itemsize // 16) * 16 for record in records]
    options = np.zeros(sum(sizes) + 16, np.uint8)
    begins = np.cumsum([0, *sizes])[: len(sizes)]
    for begin, record in zip(begins, records, strict=True):
        options[begin : begin + record.dtype.itemsize] = np.frombuffer(record.tobytes(), np.uint8)
    first = loaded[0].augmentation if loaded else None
    return Compiled(
        np.array([_compile(one.augmentation, "callback") for one in loaded], np.int64),
        begins.astype(np.int64),
        np.array([one.own for one in loaded], np.bool_),
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
    except KeyError as error:  # Numba's way to say that a record has no such field
        code, field = augmentation.kernel.py_func.__code__, error.args[0]
        place = f"{code.co_filename}, line {_line_of(field, code)}"
        raise UserError(f"{place}: {augmentation.name} declares no option {field!r}") from None


def _line_of(name, code):
    """Where a function's code first says this name; where it begins if nowhere."""
    lines = (step.positions.lineno for step in dis.get_instructions(code) if step.argval == name)
    return next(lines, code.co_firstlineno)


def _complaint(error, function):
    """Numba's pages in one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    code = function.__code__
    lines = re.findall(r'File "([^"]+)", line (\d+)', text)
    here = [int(line) for file, line in lines if Path(file).name == Path(code.co_filename).name]
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("Failed in", "File"))]
    what = said[0] if said else type(error).__name__
    if what.endswith("found for signature:"):  # the next line is the call that nobody can compile, with its types
        what = f"{what} {said[1].removeprefix('>>> ')}"
    unknown = re.search(r"name '(\w+)' is not defined", what)
    line = here[-1] if here else _line_of(unknown[1] if unknown else "", code)
    return f"{code.co_filename}, line {line}: {function.__name__} cannot be compiled: {what}"


@kernel
def key_of(place, own, key):
    """The key of a step: the sample's, or for a user's own augmentation one that no other step has."""
    seed = np.int64(rng.bits(key, rng.OWN + place) >> np.uint64(1)) if own else np.int64(key.seed)
    return RandomKey(seed, np.int64(key.sample_id))


def words(loaded: list[Loaded], interpolation: int, height: int, width: int, key: RandomKey) -> list[str]:
    """What happens to one sample, for people."""
    said = []
    for augmentation, record, own in _steps(loaded, interpolation, key):
        said += augmentation.words(record, height, width, own) if augmentation.words else [augmentation.name]
    return said


def reference(loaded: list[Loaded], interpolation: int, image, key: RandomKey):
    """The chain on a Pillow image by other people's code, which each step must declare."""
    for augmentation, record, own in _steps(loaded, interpolation, key):
        image = augmentation.reference(image, record, own)
    return image


def _steps(loaded, interpolation, key):
    """Of each step its augmentation, its options as a record and its key."""
    for place, (augmentation, options, own) in enumerate(loaded):
        yield augmentation, augmentation.record(options, interpolation), key_of(place, own, key)
