"""What an augmentation declares: its name, its options, its kernel. Recipe, help and preview follow from that.

    @augmentation(strength=number("standard deviation, gray levels", default=8, low=0, high=128))
    def grain(planes, options, key, scratch):
        \"\"\"Film grain.\"\"\"
        ...

planes: uint8 [3, height, width], changed in place. options: a record of what was declared, `options.strength`, and
`options.interpolation`, the recipe's. key: rng.RandomKey, from which every random number comes, `rng.uniform(key, 0)`.
scratch: uint8, at least 4 * height * width values of memory to work in. The function is compiled by Numba: it returns
nothing and raises nothing.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ffcv_ops import compiled
from ffcv_ops.errors import UserError
from ffcv_ops.options import nearest
from ffcv_ops.rng import RandomKey


class Option(NamedTuple):
    """One option: how its text becomes the numbers that the kernel reads."""

    help: str
    default: str
    takes: str  # what it may be, for help and complaints
    fields: dict  # name -> dtype in the kernel's record; the name "" stands for the option's own
    parse: Callable[[str], dict]  # text -> {field: value}; ValueError where it is none
    spell: Callable[[str], str] = str  # the same value in its one spelling


def _within(kind, low, high):
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
        return {"": value}

    return parse


def number(help: str, *, default: float, low: float, high: float) -> Option:
    """A number, low to high; float64 in the kernel."""
    takes, parse = f"a number {low:g} to {high:g}", _within(float, low, high)
    return Option(help, f"{default:g}", takes, {"": "f8"}, parse, lambda text: f"{float(text):.15g}")


def whole_number(help: str, *, default: int, low: int, high: int) -> Option:
    """A whole number, low to high; int64 in the kernel."""
    takes, parse = f"a whole number {low} to {high}", _within(int, low, high)
    return Option(help, str(default), takes, {"": "i8"}, parse, lambda text: str(int(text)))


def one_of(help: str, *words: str, default: str) -> Option:
    """One of these words; its place among them, int64, in the kernel."""
    return Option(help, default, f"one of {', '.join(words)}", {"": "i8"}, lambda text: {"": words.index(text)})


def some_of(help: str, *words: str, default: str) -> Option:
    """Some of these words, `gray+blur`; a bit for each, 1 << place, int64, in the kernel."""

    def split(text):
        chosen = [word.strip() for word in text.split("+")]
        if len(set(chosen)) < len(chosen) or not set(chosen) <= set(words):
            raise ValueError
        return chosen

    def parse(text):
        return {"": sum(1 << words.index(word) for word in split(text))}

    takes = f"some of {'+'.join(words)}, each once"
    return Option(help, default, takes, {"": "i8"}, parse, lambda text: "+".join(split(text)))


def written(help: str, parse: Callable[[str], NamedTuple], *, default: str, takes: str) -> Option:
    """Text in a notation of its own: `parse` makes a NamedTuple of numbers of it, which are the kernel's fields, or
    raises UserError."""
    dtypes = {name: "f8" if isinstance(value, float) else "i8" for name, value in parse(default)._asdict().items()}
    return Option(help, default, takes, dtypes, lambda text: parse(text)._asdict())


class Augmentation:
    """A declared augmentation. `kernel`, called with a record of `values`, changes an image in place."""

    def __init__(self, function, name, options, *, is_gray, words, reference, examples):
        self.name, self.options, self.help = name, options, (function.__doc__ or name).partition("\n")[0].rstrip(".")
        self.kernel = compiled.kernel(function)
        self.is_gray, self.words, self.reference, self.examples = is_gray, words, reference, examples or (name,)
        fields = [
            (field or option, np.dtype(kind)) for option, of in options.items() for field, kind in of.fields.items()
        ]
        self.dtype = np.dtype([*fields, ("interpolation", np.dtype("i8"))], align=True)

    def spelled(self, given: dict[str, str]) -> dict[str, str]:
        """Text of some options -> text of all, checked and in its one spelling; UserError."""
        for option in given:
            if option not in self.options:
                advice = f"the nearest is '{nearest(option, self.options)}'" if self.options else "it has none"
                raise UserError(f"{self.name} has no option {option!r}; {advice}")
        texts = {}
        for name, option in self.options.items():
            text = given.get(name, option.default)
            try:
                option.parse(text)
                texts[name] = option.spell(text)
            except (ValueError, OverflowError):
                raise UserError(f"{self.name}: {name} is {text!r}; it must be {option.takes}") from None
        return texts

    def record(self, texts: dict[str, str], interpolation: int) -> np.record:
        """What the kernel reads of these options."""
        record = np.zeros(1, self.dtype)
        record["interpolation"] = interpolation
        for name, option in self.options.items():
            for field, value in option.parse(texts[name]).items():
                record[field or name] = value
        return record.view(np.recarray)[0]

    @cached_property
    def callback(self):
        """The kernel as a C callback of the signature that calls.py calls."""
        from numba import types

        planes, scratch = types.Array(types.uint8, 3, "C"), types.Array(types.uint8, 1, "C")
        return compiled.callback(self.kernel.py_func, types.void(planes, *self._options_and_key(), scratch))

    @cached_property
    def is_gray_callback(self):
        from numba import types

        return compiled.callback(self.is_gray.py_func, types.int64(*self._options_and_key()))

    def _options_and_key(self):
        """Numba's types of them."""
        from numba import from_dtype, types

        return from_dtype(self.dtype), types.NamedUniTuple(types.int64, 2, RandomKey)


def augmentation(name: str | None = None, *, is_gray=None, words=None, reference=None, examples=(), **options: Option):
    """Declares the function below it as an augmentation, by its own name or by `name`.

    is_gray: a kernel (options, key) that says whether the image is made gray before anything else, so that its colors
    need not be decoded. words: (options, height, width, key) -> list of what happens to this sample, for the preview.
    reference: (Pillow image, options, key) -> Pillow image, the same by other people's code, for the preview's
    comparison and the tests. examples: rows of the preview's --all-policies.
    """

    def declare(function):
        own = name or function.__name__
        return Augmentation(
            function, own, options, is_gray=is_gray, words=words, reference=reference, examples=examples
        )

    return declare
