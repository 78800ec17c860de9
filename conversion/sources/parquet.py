"""Tables as Hugging Face stores image data sets: Parquet files, train-00000-of-00010.parquet and so on, and the Arrow
files that `save_to_disk` of its package `datasets` writes.

A column of structs with `bytes` (an image file) and `path`, a column of class numbers, and in the schema's metadata,
under `huggingface`, the names of the classes. Only labels and names are read ahead. An image is read with its row group
(some hundred images), the last of which each process keeps. An Arrow file is mapped into memory, as one row group.
"""

import contextlib
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conversion.encode import ReadError
from conversion.sources import synsets
from conversion.sources.source import Made, Source, Split, Strings, first_few, in_one_line, require_unchanged, stamps
from conversion.sources.splits import ALL, by_split, files_by_split
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import open_regular, read_regular

LABELS = ("label", "labels", "fine_label")  # the column that `auto` takes where there are several


class Opened(NamedTuple):
    """What is used of a file; as a pyarrow.parquet.ParquetFile has it."""

    schema: object
    rows: list[int]  # of each row group
    read: Callable  # names of columns -> table
    read_row_group: Callable  # number, names of columns -> table


def parquet(place: str, classes: str, label: str) -> Source:
    """place: a folder of .parquet files (or one with a folder data/ of them), one file, or a pattern with `*`; or a
    folder that `save_to_disk` wrote. label: the column with the labels; auto: the only one that has class names, or
    label, labels, fine_label."""
    files = _files(Path(place).absolute())
    paths = sorted(itertools.chain(*files.values()))
    known_stamps = stamps(paths)
    origin = os.path.commonpath(path.parent for path in paths)
    image, label, known = columns = _columns(paths[0], label)
    for path in paths[1:]:
        if _columns(path, label) != columns:
            raise UserError(f"{path} has other columns or classes than {paths[0].name}")
    splits = {name: _split(files[name], image, label, origin) for name in files}
    for name in [name for name, split in splits.items() if split is None]:
        print(f"{one_line(place)}: {name} is left out: it has no labels", file=sys.stderr)
        del splits[name]
    if not splits:
        raise UserError(f"{place}: no split has labels")
    count = synsets.count_of(splits.values(), place)
    if known and count > len(known):
        raise UserError(f"{place} has the label {count - 1}, but names for {len(known)} classes")
    numbered = synsets.named(count, known, classes, place)
    return Source(origin, numbered, splits, functools.partial(read_row, known=known_stamps))


def table_paths(place: Path) -> list[Path]:
    if not place.is_dir():
        return sorted(place.parent.glob(place.name))
    patterns = ("*.parquet", "data/*.parquet", "*.arrow", "*/*.arrow")
    return next(filter(None, (sorted(place.glob(pattern)) for pattern in patterns)), [])


def _files(place) -> dict[str, list[Path]]:
    """The files of each split, which their names tell; a `save_to_disk` lists them."""
    paths = table_paths(place)
    if not paths:
        raise UserError(f"{place} holds no .parquet or .arrow files")
    try:
        if (place / "dataset_dict.json").exists():
            named = by_split(json.loads(read_regular(place / "dataset_dict.json"))["splits"], place)
            return {split: _saved(place / name) for split, name in named.items()}
        if (place / "state.json").exists():
            return {ALL: _saved(place)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: its .json files are not those of save_to_disk ({one_line(repr(error))})") from None
    return files_by_split(place, paths)


def _saved(folder):
    """The files that a `save_to_disk` of one split says it has written."""
    state = json.loads(read_regular(folder / "state.json"))
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(f"{folder} is a selection of rows; save its flatten_indices()")
    return [folder / Path(file["filename"]).name for file in state["_data_files"]]


def read_row(item, known: Mapping[str, tuple[int, int]]) -> bytes:
    """The image file in (path, column, row group, row); a `ReadError` where the file has not its `known` stamp."""
    path, column, group, row = item
    require_unchanged(path, known)
    image = _row_group(path, column, group)[row].as_py()
    if image is None or image["bytes"] is None:
        raise UserError("has no bytes here, only a path; store the data set with its images inside")
    return image["bytes"]


@functools.lru_cache(1)
def _row_group(path, column, group):
    with _opened(path) as file:
        return file.read_row_group(group, [f"{column}.bytes"]).column(0)


@contextlib.contextmanager
def _opened(path):
    """The file as Opened; what is wrong with it is a UserError, a ReadError where it cannot be read."""
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet and Arrow files need pyarrow; pip install pyarrow") from None
    try:
        open_regular(path).close()  # or Arrow would wait for a pipe
        if str(path).endswith(".arrow"):
            yield _mapped(pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all())
            return
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            yield Opened(file.schema_arrow, rows, file.read, file.read_row_group)
    except (OSError, pyarrow.ArrowException) as error:
        raise ReadError(f"{path} cannot be read: {one_line(str(error))}") from None


def _mapped(table) -> Opened:
    """A table in memory; of a column's child, `image.bytes`, it gives the whole column, which costs nothing."""
    names = table.schema.names

    def read(columns):
        return table.select([name if name in names else name.rpartition(".")[0] for name in columns])

    return Opened(table.schema, [table.num_rows], read, lambda group, columns: read(columns))


def _columns(path, label):
    """(image column, label column, class names or None) by the first file's schema."""
    with _opened(path) as file:
        schema = file.schema
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{path} has several columns of one name")
    named = _class_names(schema, path)
    images = [name for name in schema.names if _has_child(schema.field(name).type, "bytes", "binary")]
    if len(images) != 1:
        what = f"several columns with images: {first_few(images)}" if images else "no column of structs with `bytes`"
        raise UserError(f"{path} has {what}; it needs one column with an image")
    numbers = [name for name in schema.names if str(schema.field(name).type).startswith(("int", "uint"))]
    if label == "auto":
        of_classes = [name for name in numbers if name in named]
        label = of_classes[0] if len(of_classes) == 1 else next((name for name in LABELS if name in numbers), None)
    if label not in numbers:
        raise UserError(
            f"{path}: data.label must be a column of class numbers; there is {first_few(numbers) or 'none'}"
            " (class_encode_column of datasets makes one of names)"
        )
    return images[0], label, named.get(label)


def _class_names(schema, path) -> dict[str, list[str]]:
    """Of each column that has some, by Hugging Face's description of the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = {
            column: feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        if not all(isinstance(one, list) and all(type(name) in (str, int) for name in one) for one in names.values()):
            raise ValueError("no list of names")
        return {column: list(map(str, one)) for column, one in names.items()}
    except KeyError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: the metadata `huggingface` cannot be used") from None


def _has_child(kind, name, content):
    """Whether it is a struct with one child of this name: `binary` or `string`, which may be large."""
    place = kind.get_field_index(name) if str(kind).startswith("struct<") else -1
    return place >= 0 and str(kind.field(place).type) in (content, f"large_{content}")


def _split(paths, image, label, origin) -> Split | None:
    """None where no image has a label, as in test splits, whose labels are all -1."""
    groups, counts, labels, names = [], [], [], []
    for path in paths:
        with _opened(path) as file:
            groups += [(str(path), group) for group in range(len(file.rows))]
            counts += file.rows
            has_path = _has_child(file.schema.field(image).type, "path", "string")
            table = file.read([label, f"{image}.path"] if has_path else [label])
        column = table.column(label)
        if column.null_count:
            raise UserError(f"{path}: {column.null_count:,} images have no label")
        labels.append(column.to_numpy().astype(np.int64))
        names.append(Strings.of(_names(os.path.relpath(path, origin), table, image)))
    labels = np.concatenate(labels)
    if len(labels) == 0 or (labels == -1).all():
        return None
    if labels.min() < 0:
        raise UserError(f"{paths[0]}: images of its split have the label {labels.min()}")
    return Split(_rows(groups, counts, image), Strings.joined(names), labels)


def _rows(groups, counts, column) -> Made:
    """Items that are rows: (path, column, row group, row in it). groups: (path, row group); counts: of rows in each."""
    ends = np.cumsum(counts)

    def row(number):
        group = int(np.searchsorted(ends, number, side="right"))
        path, group_number = groups[group]
        return path, column, group_number, int(number - (ends[group] - counts[group]))

    return Made(int(ends[-1]), row)


def _names(path, table, image):
    """file.parquet/17 or, where the row names its image, file.parquet/17/name."""
    structs = table.column(image) if image in table.column_names else [None] * table.num_rows
    for row, value in enumerate(structs):
        name = value["path"].as_py() if value is not None and value.is_valid else None
        yield f"{path}/{row}" + (f"/{in_one_line(name)}" if name else "")
