"""A list of images and their classes: .csv, .tsv or .jsonl, as Kaggle hands it out.

The images lie beside the list, in a folder beside it, or where `data.images` says. The column that names them is found
by what is there; names without an ending find theirs. Labels are names or numbers.
"""

import csv
import functools
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conversion.sources import synsets
from conversion.sources.selection import EXTENSIONS, LeftOut
from conversion.sources.source import Source, Split, Strings, first_few, read_file
from conversion.sources.splits import ALL, SPLITS, WORDS
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import read_regular

LABELS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed")
SPLIT = ("split", "subset", "set", "data_set", "partition")
FILE_ENDINGS = ("", *EXTENSIONS, *map(str.upper, EXTENSIONS), ".JPEG")
LOOKED_AT = 30  # rows that show which column names images
MAX_LIST = 2**32  # bytes
Rows = list[tuple[int, Sequence[str]]]  # of each row the line where it ends, and its values


def label_list(place: str, classes: str, label: str, images: str | None) -> Source:
    """place: the list. label: the column of the labels; auto: one of LABELS, or the only one besides image and split.
    images: the folder of the images."""
    path = Path(place).absolute()
    columns, rows = _json_lines(path) if path.suffix.lower() == ".jsonl" else _separated(path)
    folder, image = _image_column(path, columns, rows, images)
    if _ending(folder, columns[image]) is not None:  # the first line is a row, too
        columns, rows = [str(number) for number in range(1, len(columns) + 1)], [(1, columns), *rows]
    names = [re.sub(r"\W+", "_", name.strip().lower()) for name in columns]
    split = next((k for k, name in enumerate(names) if name in SPLIT and rows[0][1][k].strip().lower() in WORDS), None)
    label = _label_column(path, columns, names, label, {image, split})
    found = _samples(path, folder, rows, (image, label, split))
    numbered, number_of = _numbered({text for samples in found.values() for _, text in samples}, classes, place)
    splits = {}
    for name in (ALL, *SPLITS):
        if samples := found.get(name):
            paths = Strings.of(path for path, _ in samples)
            splits[name] = Split(paths, paths, np.array([number_of[text] for _, text in samples], np.int64))
    return Source(folder, numbered, splits, functools.partial(read_file, root=folder))


def _separated(path) -> tuple[Sequence[str], Rows]:
    """Column names, and the rows of a .csv or .tsv."""
    text = _text(path)
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}; is it a table with a line for each image?") from None
    if len(rows) < 2:
        raise UserError(f"{path} has no rows below its header")
    (_, columns), *rows = rows
    for line, row in rows:
        if len(row) != len(columns):
            raise UserError(f"{path} line {line}: {len(row)} values, where the first line has {len(columns)}")
    return columns, rows


def _json_lines(path) -> tuple[Sequence[str], Rows]:
    """The same of a .jsonl, whose lines are objects."""
    rows, columns = [], []
    for line, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            columns = columns or [name for name, value in row.items() if not isinstance(value, list | dict)]
            values = ["" if (value := row.get(name)) is None else str(value) for name in columns]
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path} line {line}: not an object such as {{"file_name": "1.jpg", "label": 0}}') from None
        rows.append((line, values))
    if not columns:
        raise UserError(f"{path} has no rows")
    return columns, rows


def _text(path):
    content = read_regular(path, MAX_LIST)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: no UTF-8 text; save the list as UTF-8") from None


def _image_column(path, columns, rows, images) -> tuple[str, int]:
    """(folder, column) of the images: the column with the most names, in the first rows, of files that are there; of
    two such, the one with the most whole names, since a row's number may be an image's name too."""
    looked_at = [columns, *(row for _, row in rows[:LOOKED_AT])]

    def most(folder):
        endings = [{row[k]: _ending(folder, row[k]) for row in looked_at}.values() for k in range(len(columns))]
        found = [(len(one) - list(one).count(None), list(one).count("")) for one in endings]
        return max(found)[0], folder, found.index(max(found))

    if images is not None:
        folders = [os.path.abspath(images)]
    else:
        folders = [str(path.parent), *sorted(str(entry) for entry in path.parent.iterdir() if entry.is_dir())]
    if not os.path.isdir(folders[0]):
        raise UserError(f"data.images: {folders[0]} is not a folder")
    found = most(folders[0])
    beside = [] if found[0] else [one for one in map(most, folders[1:]) if one[0]]
    if len(beside) > 1:
        shown = first_few([os.path.basename(folder) for _, folder, _ in beside])
        raise UserError(f"{path}: its images may be in {shown}; --data.images=FOLDER says in which")
    count, folder, column = next(iter(beside), found)
    if not count:
        shown = first_few(rows[0][1])
        raise UserError(
            f"{path} line {rows[0][0]}: none of its values names an image in {folders[0]} ({shown});"
            " --data.images=FOLDER says where they are"
        )
    return folder, column


def _ending(folder, name) -> str | None:
    """What is to be added to the name for a file in the folder; None where there is no such file."""
    name = name.strip()
    found = (ending for ending in FILE_ENDINGS if name and os.path.isfile(os.path.join(folder, name + ending)))
    return next(found, None)


def _label_column(path, columns, names, label, taken) -> int:
    others = [k for k in range(len(columns)) if k not in taken]
    if label != "auto":
        found = [k for k in others if columns[k] == label]
    else:
        known = sorted((LABELS.index(names[k]), k) for k in others if names[k] in LABELS)
        found = [known[0][1]] if known else others if len(others) == 1 else []
    if not found:
        shown = ", ".join(one_line(columns[k]) for k in others) or "no other column"
        raise UserError(f"{path}: --data.label=COLUMN must say where the classes are; there is {shown}")
    return found[0]


def _samples(path, folder, rows, columns) -> dict[str, list[tuple[str, str]]]:
    """{split: [(path of the image below the folder, label as text)]}. A `UserError` that names the first row that
    cannot be used."""
    image, label, split = columns
    samples, first, left_out = {}, {}, LeftOut()
    unlabeled = _without_labels(rows, label, split)
    for line, row in rows:
        name, text, place = row[image].strip(), row[label].strip(), f"{path} line {line}"
        part = ALL if split is None else WORDS.get(row[split].strip().lower())
        if part is None:
            raise UserError(f"{place}: the split {one_line(row[split])} is neither train, val nor test")
        if part in unlabeled:
            left_out.add(f"rows of {part}, which has no labels", name)
            continue
        if not text:
            raise UserError(f"{place}: {one_line(name)} has no label; take the row out, or give its class")
        ending = _ending(folder, name)
        if ending is None:
            raise UserError(f"{place}: no image {one_line(name)} in {folder}; get it, or take the row out")
        file = os.path.normpath(name + ending)
        if file.splitlines() != [file]:
            raise UserError(f"{place}: {one_line(file)} has a line break in its name; rename it")
        earlier = first.setdefault(file, (line, text, part))
        if earlier == (line, text, part):
            samples.setdefault(part, []).append((file, text))
        elif earlier[1:] == (text, part):
            left_out.add("repeated rows", name)
        else:
            raise UserError(
                f"{place}: {one_line(name)} is in line {earlier[0]} too, with another class or split; it can have one"
            )
    left_out.tell(one_line(str(path)))
    return samples


def _without_labels(rows, label, split) -> set[str]:
    """The splits without any label, as tests are handed out."""
    if split is None:
        return set()
    parts = [(WORDS.get(row[split].strip().lower()), bool(row[label].strip())) for _, row in rows]
    return {part for part, _ in parts} - {part for part, has_label in parts if has_label} - {None}


def _numbered(found: set[str], classes: str, place: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """All class names, and the class number of each label's text."""
    if not synsets.are_numbers(found) or classes in (synsets.NUMERIC, synsets.SORTED):
        names = synsets.ordered(sorted(found), classes, place)
    elif classes == synsets.AUTO:
        names = tuple(sorted(found, key=lambda text: (int(text), text)))
        synsets.suggest_names(place)
    else:
        names = synsets.class_list(classes)
        by_value = sorted(found, key=int)
        if int(by_value[-1]) < len(names):
            return names, {text: int(text) for text in found}
        if len(by_value) != len(names):
            raise UserError(f"{place} has the label {by_value[-1]}, data.classes={classes} {len(names):,} classes")
        return names, {text: k for k, text in enumerate(by_value)}  # 1 to n, where the list has n names
    number = {name: k for k, name in enumerate(names)}
    return names, {text: number[text] for text in found}
