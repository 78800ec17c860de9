"""Which class has which number: by the names that are there, by ImageNet's lists in timm, or by a file."""

import importlib.util
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from conversion.sources.source import Split, first_few
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import read_regular
from ffcv_ops.storage.info import MOST_CLASSES

AUTO, SORTED, NUMERIC, WINTER21 = "auto", "sorted", "numeric", "winter21"
BY_NAME = (AUTO, SORTED, NUMERIC)  # the names that are there decide, and no list
MAX_NUMBER = MOST_CLASSES - 1
LISTS = {  # timm's file -> what data.classes calls it
    "imagenet1k": "imagenet_synsets.txt",
    "imagenet12k": "imagenet12k_synsets.txt",
    "imagenet21k": "imagenet22k_synsets.txt",  # fall11: 21,841
    "imagenet21k_goog": "imagenet21k_goog_synsets.txt",  # the 21,843 of Google's checkpoints
}
WINTER21_COUNT = 19_167


def class_list(wanted: str) -> tuple[str, ...]:
    """The classes in the order of the list or file `wanted`. Raises UserError where there is none."""
    if wanted == WINTER21:
        raise UserError(
            f"data.classes=winter21 needs folders, tar files or keys that are named by synset: timm has no list of its"
            f" {WINTER21_COUNT:,} classes; give a file with one class a line"
        )
    path = _timm_list(LISTS[wanted]) if wanted in LISTS else Path(wanted)
    try:
        names = tuple(read_regular(path).decode("utf-8-sig").split("\n"))
    except (UserError, ValueError) as error:
        reason = error if isinstance(error, UserError) else f"{path} is no UTF-8 text"
        known = ", ".join((*BY_NAME, *LISTS, WINTER21))
        raise UserError(f"data.classes: {reason}; a file, or one of {known}") from None
    names = tuple(name.strip() for name in names if name.strip())
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice or not names:
        raise UserError(
            f"{path}: {f'{first_few(twice)} appear twice' if twice else 'no classes'}; it needs one class a line"
        )
    return names


def refuse_two_forms(names: Iterable[str], place: str):
    """A `UserError` where two of the class names are one in two Unicode forms, as macOS and Linux write it: they look
    the same, and would be two classes."""
    forms = {}
    for name in names:
        first = forms.setdefault(unicodedata.normalize("NFC", name), name)
        if first != name:
            raise UserError(f"{place}: one class is written in two Unicode forms, {first!a} and {name!a}; rename one")


def ordered(found: Sequence[str], wanted: str, place: str) -> tuple[str, ...]:
    """All classes by number, for a source whose class names `found` are at `place`. A name that the list `wanted` lacks
    is refused; a class without images keeps its number."""
    refuse_two_forms(found, place)
    if wanted == NUMERIC:
        return _by_value(found, place)
    if wanted in BY_NAME:
        names = tuple(sorted(found))
        if wanted == AUTO and are_numbers(names):
            _refuse_two_orders(names, place)
        return names
    if wanted == WINTER21:
        return _winter21(found, place)
    classes = class_list(wanted)
    refuse_two_forms([*classes, *found], f"{place} and data.classes={wanted}")
    _refuse_unknown(found, classes, place, f"data.classes={wanted}")
    return classes


def _refuse_two_orders(names, place):
    for label, (name, other) in enumerate(zip(names, sorted(names, key=int), strict=True)):
        if name != other:
            raise UserError(
                f"{place}: the classes are called by numbers, and the label {label} would be {name} by the order of the"
                f" names, {other} by value; data.classes=numeric makes the numbers the labels, data.classes=sorted"
                " sorts the names as torchvision does"
            )


def are_numbers(names: Iterable[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _by_value(found, place):
    """Each class at the number that it is called by. A number without a class keeps its place, and has no images."""
    if not are_numbers(found) or max(map(int, found)) > MAX_NUMBER:
        raise UserError(f"{place}: data.classes=numeric needs classes called by numbers of at most {MAX_NUMBER:,}")
    by_number = {int(name): name for name in found}
    if len(by_number) < len(found):
        raise UserError(f"{place}: two classes are called by the same number")
    return tuple(by_number.get(number, str(number)) for number in range(max(by_number) + 1))


def _winter21(found, place):
    """The release itself says what its classes are; they must be so many, all of fall11's."""
    _refuse_unknown(found, class_list("imagenet21k"), place, "the 21,841 synsets of ImageNet-21k")
    if len(found) != WINTER21_COUNT:
        raise UserError(f"{place} has {len(found):,} classes; winter21 has {WINTER21_COUNT:,}")
    return tuple(sorted(found))


def _refuse_unknown(found, classes, place, name):
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise UserError(f"{place} has classes that are not in {name}: {first_few(unknown)}")


def count_of(splits: Iterable[Split], place: str) -> int:
    """How many classes the numbers of the splits need: one more than the largest. A `UserError` where that is out of
    all proportion, and a model would need a head of so many outputs."""
    largest = -1
    for split in splits:
        at = int(split.labels.argmax())
        largest = max(largest, int(split.labels[at]))
        if largest > MAX_NUMBER:
            raise UserError(
                f"{place}: {one_line(split.names[at])} has the label {largest:,}, where {MAX_NUMBER:,} is the most; is"
                " that the number of a class?"
            )
    return largest + 1


def named(count: int, known: Sequence[str] | None, wanted: str, place: str) -> tuple[str, ...]:
    """Names for classes that the source at `place` knows by number, 0 to count - 1: the source's own, `known`, or
    those of the list `wanted`, which must be as long as all numbers need."""
    if wanted in BY_NAME:
        if not known:
            suggest_names(place)
        return tuple(known or map(str, range(count)))
    if wanted == WINTER21 and known:
        if tuple(known) != _winter21(known, place):
            raise UserError(f"{place} has its classes not in the order of their synsets, as winter21 has")
        return tuple(known)
    classes = class_list(wanted)
    if count > len(classes):
        raise UserError(f"{place} has the label {count - 1:,}, data.classes={wanted} {len(classes):,} classes")
    return classes


def suggest_names(place: str):
    print(f"{one_line(place)}: classes are numbers; --data.classes=FILE gives names, a line each", file=sys.stderr)


def _timm_list(file: str) -> Path:
    """Without importing timm, which takes seconds."""
    return Path(importlib.util.find_spec("timm").submodule_search_locations[0], "data", "_info", file)
