"""WebDataset's tar shards: the image of a sample as key.jpg (.png, .webp ...), its label in key.cls or key.json.

Shards are read in the order of their names. Those named ...train..., ...val(idation)... or ...test... make the splits,
or what `_info.json` of timm's data sets lists; others are train.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np

from conversion.sources import synsets, tars
from conversion.sources.folder import EXTENSIONS
from conversion.sources.source import Source, Spans, Split, Strings, one_line, some
from ffcv_ops.errors import BadInput

INFO = "_info.json"
WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MOST_LABEL = 2**24  # bytes of one .json
SYNSETS_CHECKED = 1000  # samples of each split whose key begins with a synset, held against the list


def webdataset(place: str, classes: str, label: str, workers: int) -> Source:
    """place: a folder of shards, one shard, or a pattern with `*`. label: the field of key.json, or auto: the number in
    key.cls, else `label` in key.json."""
    paths, expected = _shards(Path(place).absolute(), label)
    splits = {name: _split(name, paths[name], expected, label, workers) for name in paths}
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    numbered = synsets.named(count, None, classes, place)
    if classes != synsets.AUTO:
        for split in splits.values():
            _check_synsets(split, numbered, place, classes)
    folder = next(iter(paths.values()))[0].parent
    return Source(str(folder), numbered, splits, tars.read_bytes)


def split_of(file_name: str) -> str:
    """train, val or test, by the first such word in the name."""
    words = (WORDS.get(word) for word in re.split(r"[^a-z]+", file_name.lower()))
    return next(filter(None, words), "train")


def _shards(place: Path, label):
    """({split: paths}, {path: samples that it must have})."""
    if place.is_dir() and (place / INFO).exists():
        return _listed(place, label)
    found = tars.tar_paths(place) if place.is_dir() else sorted(place.parent.glob(place.name))
    if not found:
        raise BadInput(f"{place} holds no .tar files")
    paths = {}
    for path in found:
        paths.setdefault(split_of(path.name), []).append(path)
    return {name: paths[name] for name in ("train", "val", "test") if name in paths}, {}


def _listed(folder, label):
    """What _info.json says: {"splits": {name: {"filenames": [...], "shard_lengths": [...], "alt_label": "..."}}}."""
    try:
        splits = json.loads((folder / INFO).read_bytes())["splits"]
        chosen = {name: split for name, split in splits.items() if split.get("alt_label") == label} or {
            name: split for name, split in splits.items() if not split.get("alt_label")
        }
        files = {split_of(name): split["filenames"] for name, split in chosen.items()}
        lengths = {
            folder / file: int(length)
            for split in chosen.values()
            for file, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
        inside = all(Path(file).name == file for names in files.values() for file in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{folder / INFO} cannot be used: {one_line(repr(error))}; without it file names tell") from None
    if not inside or not files:
        raise BadInput(f"{folder / INFO} must name files of its own folder")
    missing = [path.name for path in lengths if not path.exists()]
    if missing:
        raise BadInput(f"{folder} lacks {some(missing)} of the {len(lengths):,} shards in {INFO}; get them")
    return {name: [folder / file for file in names] for name, names in files.items()}, lengths


def _split(name, paths, expected, label, workers) -> Split:
    scan = functools.partial(_samples, label=label)
    parts = tars.scanned(scan, [tars.whole(path) for path in paths], name, workers)
    counts = [len(names) for names, *_ in parts]
    for path, count in zip(paths, counts, strict=True):
        if expected.get(path, count) != count:
            raise BadInput(f"{path} has {count:,} samples, {INFO} says {expected[path]:,}; get it again")
    if not sum(counts):
        raise BadInput(f"{paths[0]}: no images in the split {name}; known by {' '.join(EXTENSIONS)}")
    offsets, sizes, labels = (np.concatenate([part[k] for part in parts]) for k in (1, 2, 3))
    items = Spans([str(path) for path in paths], counts, offsets, sizes)
    return Split(items, Strings.joined([names for names, *_ in parts]), labels)


def _samples(region, label):
    """Names, offsets, sizes and labels of a shard's samples. The members of a sample follow one another."""
    names, offsets, sizes, labels = [], [], [], []
    shard = Path(region.path).name

    def close(key, parts):
        images = [end for end in parts if f".{end}" in EXTENSIONS]
        if not images:
            return
        if len(images) > 1:
            raise BadInput(f"{region.path}: {one_line(key)} has several images: {', '.join(images)}")
        image = parts[images[0]]
        names.append(one_line(f"{shard}/{image.name}"))
        offsets.append(image.offset)
        sizes.append(image.size)
        labels.append(_label(region, key, parts, label))

    key, parts = None, {}
    for member in tars.members(region):
        folder, slash, file = member.name.rpartition("/")
        stem, _, end = file.partition(".")
        own_key, end = f"{folder}{slash}{stem}", end.lower()
        if own_key != key:
            close(key, parts)
            key, parts = own_key, {}
        if end in parts:
            raise BadInput(f"{region.path}: {one_line(member.name)} is there twice")
        parts[end] = member
    close(key, parts)
    return Strings.of(names), *(np.array(column, np.int64) for column in (offsets, sizes, labels))


def _label(region, key, parts, label):
    end, field = "json", "label" if label == "auto" else label
    if label == "auto" and "cls" in parts:
        end, field = "cls", None
    place = f"{region.path}: {one_line(key)}"
    if end not in parts:
        raise BadInput(f"{place} has no .cls and no .json with a label" if label == "auto" else f"{place} has no .json")
    member = parts[end]
    if member.size > MOST_LABEL:
        raise BadInput(f"{place}.{end} has {member.size:,} bytes; that is no label")
    text = tars.read_bytes((region.path, member.offset, member.size))
    try:
        number = int(text) if field is None else json.loads(text)[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        number = None
    if type(number) is not int or not 0 <= number < 2**31:
        what = f"the field {one_line(field)}" if field else "the content"
        raise BadInput(f"{place}.{end}: {what} is no class number")
    return number


def _check_synsets(split, classes, place, wanted):
    """Keys such as n01440764_10026 tell the class: a list in another order than the labels' is noticed."""
    known = set(classes)
    for k in np.linspace(0, len(split.labels) - 1, min(len(split.labels), SYNSETS_CHECKED)).astype(int):
        synset = split.names[k].rpartition("/")[2].partition("_")[0]
        if synset in known and classes[split.labels[k]] != synset:
            raise BadInput(
                f"{place}: {split.names[k]} has the label {split.labels[k]}, which is {classes[split.labels[k]]} in"
                f" data.classes={wanted}; the labels follow another list"
            )
