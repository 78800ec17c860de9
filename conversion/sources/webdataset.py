"""WebDataset's tar shards: the image of a sample as key.jpg (.png, .webp ...), its label in key.cls or key.json.

The members of a sample follow each other. A key ends at the first dot; where that leaves a sample without an image, or
with several that have labels of their own, it ends at the last one.

Shards are read in the order of their names. Those named ...train..., ...val(idation)... or ...test... make the splits,
or what `_info.json` of timm's data sets lists; others are train.
"""

import functools
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np

from conversion import formats
from conversion.sources import synsets, tars
from conversion.sources.selection import LeftOut, has_image_name, junk_folder
from conversion.sources.source import Source, Spans, Split, Strings, first_few, in_one_line, joined, prefixed, stamps
from conversion.sources.splits import by_split, files_by_split, split_of
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import read_regular

INFO = "_info.json"
MAX_LABEL = 2**24  # bytes of one .json
NO_SYNSET = -1


def webdataset(place: str, classes: str, label: str, workers: int) -> Source:
    """place: a folder of shards, one shard, or a pattern with `*`. label: the field of key.json; or .txt, the ending of
    the member that holds the number; or auto: the number in key.cls, else `label` in key.json."""
    paths, expected = _shards(Path(place).absolute(), label)
    known_stamps = stamps(itertools.chain(*paths.values()))
    read = {name: _split(name, paths[name], expected, label, workers) for name in paths}
    splits = {name: split for name, (split, _) in read.items()}
    count, labels = synsets.count_of(splits.values(), place), np.concatenate([s.labels for s in splits.values()])
    known = _class_names(labels, np.concatenate([synsets_of for _, synsets_of in read.values()]))
    numbered = synsets.named(count, known, classes, place)
    for number, (name, synset) in enumerate(zip(numbered, known or (), strict=False)):
        if synset != name and synset in numbered:
            raise UserError(
                f"{place}: the images of label {number} are called {synset}_..., but data.classes={classes} has {name}"
                " there; the labels follow another list"
            )
    folder = next(iter(paths.values()))[0].parent
    return Source(str(folder), numbered, splits, functools.partial(tars.read_bytes, known=known_stamps))


def _class_names(labels, synsets_of) -> list[str] | None:
    """Names of classes by number, where keys such as n01440764_10026 give each label a synset of its own. A class
    without such keys is called by its number."""
    synset, has_synset = np.full(1 + labels.max(), NO_SYNSET, np.int32), synsets_of != NO_SYNSET
    synset[labels[has_synset]] = synsets_of[has_synset]
    known = synset[synset != NO_SYNSET]
    contradictory = (synset[labels[has_synset]] != synsets_of[has_synset]).any() or len(np.unique(known)) < len(known)
    if contradictory or not len(known):
        return None
    return [str(number) if value == NO_SYNSET else f"n{value:08}" for number, value in enumerate(synset)]


def _shards(place: Path, label):
    """({split: paths}, {path: samples that it must have})."""
    if os.path.lexists(place / INFO):
        return _listed(place, label)
    found = tars.tar_paths(place) if place.is_dir() else sorted(place.parent.glob(place.name))
    if not found:
        raise UserError(f"{place} holds no .tar files")
    return files_by_split(place, found), {}


def _listed(folder, label):
    """What _info.json says: {"splits": {name: {"filenames": [...], "shard_lengths": [...], "alt_label": "..."}}}."""
    try:
        splits = json.loads(read_regular(folder / INFO))["splits"]
        chosen = {name: split for name, split in splits.items() if split.get("alt_label") == label} or {
            name: split for name, split in splits.items() if not split.get("alt_label")
        }
        by_split(chosen, folder / INFO)
        files = {split_of(name): split["filenames"] for name, split in chosen.items()}
        lengths = {
            folder / file: int(length)
            for split in chosen.values()
            for file, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
        listed = [file for names in files.values() for file in names]
        inside = all(Path(file).name == file for file in listed)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{folder / INFO} cannot be used: {one_line(repr(error))}; without it file names tell"
        ) from None
    if not inside or not files:
        raise UserError(f"{folder / INFO} must name files of its own folder")
    if len(lengths) < len(listed):
        raise UserError(f"{folder / INFO} names a file twice")
    missing = [path.name for path in lengths if not path.exists()]
    if missing:
        raise UserError(f"{folder} lacks {first_few(missing)} of the {len(lengths):,} shards in {INFO}; get them")
    return {name: [folder / file for file in names] for name, names in files.items()}, lengths


def _split(name, paths, expected, label, workers) -> tuple[Split, np.ndarray]:
    """The split, and the number of the synset that each key begins with."""
    scan = functools.partial(_samples, label=label)
    scanned = tars.scanned(scan, [tars.whole(path) for path in paths], name, workers)
    counts = [len(names) for names, *_ in scanned]
    for path, count in zip(paths, counts, strict=True):
        if expected.get(path, count) != count:
            raise UserError(f"{path} has {count:,} samples, {INFO} says {expected[path]:,}; get it again")
    if not sum(counts):
        raise UserError(f"{paths[0]}: no images in the split {name} (known formats: {formats.NAMES})")
    names, offsets, sizes, labels, synsets_of, left_out = joined(scanned)
    left_out.tell(f"{one_line(str(paths[0].parent))}, {name}")
    items = Spans([str(path) for path in paths], counts, offsets, sizes)
    names = prefixed([f"{in_one_line(path.name)}/" for path in paths], counts, names)
    return Split(items, names, labels, left_out.counts), synsets_of


def _samples(region, label):
    """Names, offsets, sizes, labels and synsets of a shard's samples, and what is left out."""
    names, offsets, sizes, labels, synsets_of, left_out = [], [], [], [], [], LeftOut()
    for group in _groups(region, left_out):
        for key, image, ends in _samples_of(region, group, label, left_out):
            names.append(in_one_line(image.name))
            offsets.append(image.offset)
            sizes.append(image.size)
            labels.append(_label(region, key, ends, label))
            synset = re.match(r"n([0-9]{8})_", key.rpartition("/")[2])
            synsets_of.append(int(synset[1]) if synset else NO_SYNSET)
    columns = (np.array(column, np.int64) for column in (offsets, sizes, labels))
    return Strings.of(names), *columns, np.array(synsets_of, np.int32), left_out


def _groups(region, left_out):
    """Yields the members that follow each other with one name before its first dot: {ending: member}."""
    key, group = None, {}
    for member in tars.members(region):
        folder, _, file = member.name.rpartition("/")
        reason = junk_folder(member.name) or ("macOS's metadata" if file.startswith("._") else None)
        if reason:
            left_out.add(reason, member.name)
            continue
        stem, _, end = file.partition(".")
        if (folder, stem) != key:
            if group:
                yield group
            key, group = (folder, stem), {}
        if end.lower() in group:
            raise UserError(f"{region.path}: {one_line(member.name)} is there twice")
        group[end.lower()] = member
    if group:
        yield group


def _samples_of(region, group, label, left_out):
    """Yields (key, image, {ending: member}) of the samples in a group. The key of most of them ends at the first dot,
    and their endings may hold more; where others have labels of their own, theirs ends at the last dot."""
    by_key, label_ends = {}, _label_ends(label)
    for end, member in group.items():
        inner, _, last = end.rpartition(".")
        by_key.setdefault(inner, {})[last] = member
    images_of = {
        inner: [end for end in ends if end not in label_ends and tars.is_image(region, ends[end])]
        for inner, ends in by_key.items()
    }
    if not any(images_of.values()):
        left_out.add("in a sample without an image", next(iter(group.values())).name, len(group))
    for inner, ends in by_key.items():
        images = images_of[inner]
        if not images:
            continue
        key = re.sub(r"\.[^./]*$" if inner else r"\.[^/]*$", "", ends[images[0]].name)
        if len(images) > 1:
            raise UserError(f"{region.path}: {one_line(key)} has several images: {', '.join(map(one_line, images))}")
        if inner and images_of.get("") and not label_ends & ends.keys():
            left_out.add("further image of a sample", ends[images[0]].name)  # as key.seg.png beside key.jpg
            continue
        yield key, ends[images[0]], ends


def _label_ends(label):
    """The endings of the members that may hold the label."""
    if label.startswith("."):
        return {label[1:].lower()}
    return {"cls", "json"} if label == "auto" else {"json"}


def _label(region, key, ends, label):
    end, field = "json", "label" if label == "auto" else label
    if label.startswith("."):
        end, field = label[1:].lower(), None
    elif label == "auto" and "cls" in ends:
        end, field = "cls", None
    place = f"{region.path}: {one_line(key)}"
    if end not in ends:
        raise UserError(_without_label(place, ends, end, label))
    member = ends[end]
    if member.size > MAX_LABEL:
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


def _without_label(place, ends, end, label):
    if label != "auto":
        return f"{place} has no .{end}"
    text = f"{place} has no .cls and no .json with a label; the members of a sample must follow each other"
    others = [other for other in ends if not has_image_name(f"x.{other}")]
    return f"{text}; data.label=.{one_line(others[0])} takes the number in that member" if others else text
