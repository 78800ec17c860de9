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
from conversion.sources.source import Prefixed, Source, Spans, Split, Strings, joined, one_line, some
from ffcv_ops.errors import UserError

INFO = "_info.json"
WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MOST_LABEL = 2**24  # bytes of one .json
NO_SYNSET = -1


def webdataset(place: str, classes: str, label: str, workers: int) -> Source:
    """place: a folder of shards, one shard, or a pattern with `*`. label: the field of key.json, or auto: the number in
    key.cls, else `label` in key.json."""
    paths, expected = _shards(Path(place).absolute(), label)
    read = {name: _split(name, paths[name], expected, label, workers) for name in paths}
    splits = {name: split for name, (split, _) in read.items()}
    labels = np.concatenate([split.labels for split in splits.values()])
    known = _told(labels, np.concatenate([synsets_of for _, synsets_of in read.values()]))
    numbered = synsets.named(1 + int(labels.max()), known, classes, place)
    for number, (name, told) in enumerate(zip(numbered, known or (), strict=False)):
        if told != name and told in numbered:
            raise UserError(
                f"{place}: the images of label {number} are called {told}_..., but data.classes={classes} has {name}"
                " there; the labels follow another list"
            )
    folder = next(iter(paths.values()))[0].parent
    return Source(str(folder), numbered, splits, tars.read_bytes)


def _told(labels, synsets_of) -> list[str] | None:
    """Names of classes by number, where keys such as n01440764_10026 give each label a synset of its own. A class that
    they do not tell is called by its number."""
    synset, telling = np.full(1 + labels.max(), NO_SYNSET, np.int32), synsets_of != NO_SYNSET
    synset[labels[telling]] = synsets_of[telling]
    told = synset[synset != NO_SYNSET]
    contradictory = (synset[labels[telling]] != synsets_of[telling]).any() or len(np.unique(told)) < len(told)
    if contradictory or not len(told):
        return None
    return [str(number) if value == NO_SYNSET else f"n{value:08}" for number, value in enumerate(synset)]


def split_of(file_name: str, other: str | None = "train") -> str | None:
    """train, val or test, by the first such word in the name; `other` where there is none."""
    words = (WORDS.get(word) for word in re.split(r"[^a-z]+", file_name.lower()))
    return next(filter(None, words), other)


def _shards(place: Path, label):
    """({split: paths}, {path: samples that it must have})."""
    if place.is_dir() and (place / INFO).exists():
        return _listed(place, label)
    found = tars.tar_paths(place) if place.is_dir() else sorted(place.parent.glob(place.name))
    if not found:
        raise UserError(f"{place} holds no .tar files")
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
        _check_names(folder / INFO, chosen)
        files = {split_of(name): split["filenames"] for name, split in chosen.items()}
        lengths = {
            folder / file: int(length)
            for split in chosen.values()
            for file, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
        inside = all(Path(file).name == file for names in files.values() for file in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / INFO} cannot be used: {one_line(repr(error))}; without it file names tell"
        ) from None
    if not inside or not files:
        raise UserError(f"{folder / INFO} must name files of its own folder")
    missing = [path.name for path in lengths if not path.exists()]
    if missing:
        raise UserError(f"{folder} lacks {some(missing)} of the {len(lengths):,} shards in {INFO}; get them")
    return {name: [folder / file for file in names] for name, names in files.items()}, lengths


def _check_names(info, names):
    """Each must be train, val or test, and none of them another's."""
    known = {}
    for name in names:
        split, shown = split_of(name, None), one_line(name)
        if split is None:
            raise UserError(
                f"{info}: the split {shown} is neither train, val nor test; take it out there, or rename it"
            )
        if split in known:
            raise UserError(
                f"{info}: {one_line(known[split])} and {shown} are both {split}; take one of them out there"
            )
        known[split] = name


def _split(name, paths, expected, label, workers) -> tuple[Split, np.ndarray]:
    """The split, and the number of the synset that each key begins with."""
    scan = functools.partial(_samples, label=label)
    parts = tars.scanned(scan, [tars.whole(path) for path in paths], name, workers)
    counts = [len(names) for names, *_ in parts]
    for path, count in zip(paths, counts, strict=True):
        if expected.get(path, count) != count:
            raise UserError(f"{path} has {count:,} samples, {INFO} says {expected[path]:,}; get it again")
    if not sum(counts):
        raise UserError(f"{paths[0]}: no images in the split {name}; known by {' '.join(EXTENSIONS)}")
    names, offsets, sizes, labels, synsets_of = joined(parts)
    items = Spans([str(path) for path in paths], counts, offsets, sizes)
    names = Prefixed([f"{one_line(path.name)}/" for path in paths], counts, names)
    return Split(items, names, labels), synsets_of


def _samples(region, label):
    """Names, offsets, sizes, labels and synsets of a shard's samples. The members of a sample follow one another."""
    names, offsets, sizes, labels, synsets_of = [], [], [], [], []

    def close(key, parts):
        images = [end for end in parts if f".{end}" in EXTENSIONS]
        if not images:
            return
        if len(images) > 1:
            raise UserError(f"{region.path}: {one_line(key)} has several images: {', '.join(images)}")
        image = parts[images[0]]
        names.append(one_line(image.name))
        offsets.append(image.offset)
        sizes.append(image.size)
        labels.append(_label(region, key, parts, label))
        synset = re.match(r"n([0-9]{8})_", key.rpartition("/")[2])
        synsets_of.append(int(synset[1]) if synset else NO_SYNSET)

    key, parts = None, {}
    for member in tars.members(region):
        folder, slash, file = member.name.rpartition("/")
        stem, _, end = file.partition(".")
        own_key, end = f"{folder}{slash}{stem}", end.lower()
        if own_key != key:
            close(key, parts)
            key, parts = own_key, {}
        if end in parts:
            raise UserError(f"{region.path}: {one_line(member.name)} is there twice")
        parts[end] = member
    close(key, parts)
    columns = (np.array(column, np.int64) for column in (offsets, sizes, labels))
    return Strings.of(names), *columns, np.array(synsets_of, np.int32)


def _label(region, key, parts, label):
    end, field = "json", "label" if label == "auto" else label
    if label == "auto" and "cls" in parts:
        end, field = "cls", None
    place = f"{region.path}: {one_line(key)}"
    if end not in parts:
        raise UserError(
            f"{place} has no .cls and no .json with a label" if label == "auto" else f"{place} has no .json"
        )
    member = parts[end]
    if member.size > MOST_LABEL:
        raise UserError(f"{place}.{end} has {member.size:,} bytes; that is no label")
    text = tars.read_bytes((region.path, member.offset, member.size))
    try:
        number = int(text) if field is None else json.loads(text)[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        number = None
    if type(number) is not int or not 0 <= number < 2**31:
        what = f"the field {one_line(field)}" if field else "the content"
        raise UserError(f"{place}.{end}: {what} is no class number")
    return number
