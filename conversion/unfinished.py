"""What a conversion that was stopped has finished, and whether this one may go on with it.

Beside x.beton.partial, which holds the images, lies x.journal.partial: after every CHUNK items, once their images have
been read back from the disk, a record of what the .beton's tables say of them. x.unfinished says what is being
converted and how. It is also the lock. The same conversion goes on behind the last record; another one is refused,
since hours of work may lie there.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import features
from xxhash import xxh64

from conversion import beton, journal
from conversion.direct import open_direct
from conversion.encode import Refused, encode_all
from conversion.shards import Part, beside, remains
from conversion.workers import Worker, next_answer
from ffcv_ops.errors import UserError

CHUNK = 1024  # items between two records: what a kill can cost; 50 MB of ImageNet's JPEGs to sync at a time
WRITER = 2  # another number when the same settings give other bytes
PROBES = 32  # finished items that are encoded again before a conversion goes on, and as many refused ones


def identity_of(source, split_name: str, shards: int, settings: dict) -> dict:
    """All that the bytes of the files depend on but the images themselves; under `id` a digest of it."""
    split, names = source.splits[split_name], xxh64()
    labels = np.ascontiguousarray(split.labels, "<i8")
    every = iter(split.names)
    while some := list(itertools.islice(every, CHUNK)):
        names.update("\n".join([*some, ""]).encode("utf-8", "surrogateescape"))
    identity = {
        "source": source.origin,
        "split": split_name,
        "images": len(split.items),
        "names": names.hexdigest(),
        "labels": xxh64(labels).hexdigest(),
        "classes": xxh64("\n".join(source.classes).encode("utf-8", "surrogateescape")).hexdigest(),
        "shards": shards,
        **settings,
        "writer": WRITER,
        "pillow": PIL.__version__,
        "libjpeg": features.version("jpg"),
    }
    identity = json.loads(json.dumps(identity))  # as it is read again
    return {"id": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16], **identity}


def begin_or_go_on(marker, identity: dict, path: Path) -> set[int]:
    """Makes the open file `marker` say what is being converted to `path`. If it said so before, what is there stays;
    returns the shards of which it has been noted that they were read back. If it said something else, what is there is
    of another conversion and a `UserError`."""
    marker.seek(0)
    try:
        earlier = json.loads(marker.readline())
    except ValueError:
        earlier = {}
    if earlier.get("id") == identity["id"]:
        return noted(marker)
    journals = (file for file in remains(path) if file.name.endswith(".journal.partial"))
    if earlier and (noted(marker) or any(file.stat().st_size for file in journals)):
        differ = [name for name in identity if name != "id" and identity[name] != earlier.get(name)]
        shown = ", ".join(f"{name} {earlier.get(name)} instead of {identity[name]}" for name in differ[:3])
        raise UserError(
            f"{marker.name}: an unfinished conversion has {shown}; repeat that one, or remove this file to begin anew"
        )
    for file in remains(path):
        file.unlink()
    marker.truncate(0)
    _add_line(marker, json.dumps(identity))
    return set()


def note(marker, part: Part):
    """That the part has been read back, and takes its final name now."""
    _add_line(marker, str(part.shard))


def noted(marker) -> set[int]:
    """The shards of which it was noted."""
    marker.seek(0)
    return {int(shard) for shard in marker.read().splitlines()[1:] if shard.isdigit()}


def _add_line(marker, line):
    marker.write(line.encode() + b"\n")
    marker.flush()
    os.fsync(marker.fileno())


def is_complete(part: Part, identity: dict, split, encode) -> bool:
    """Whether the part's files are those that this conversion finished before it was stopped, and its images, by some
    of them, are still what they were."""
    return _has_its_files(part, identity) and _has_its_images(part, split, encode)


def _has_its_images(part, split, encode):
    skipped = beside(part.path, ".skipped.txt")
    lines = skipped.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if skipped.exists() else ()
    refused = {line.partition("\t")[0] for line in lines}
    items = [number for number in part.items if split.names[number] not in refused] if refused else part.items
    checksums, owners = np.fromfile(beside(part.path, ".xxh64"), beton.CHECKSUM), beton.owners(part.path)
    for sample in _some(range(len(items))):
        (result,) = encode_all(encode, [split.items[items[sample]]])
        if isinstance(result, Refused) or sorted(_checksums(result)) != sorted(checksums[owners == sample].tolist()):
            print(f"{part.path}: {split.names[items[sample]]} has changed; it is written again", file=sys.stderr)
            return False
    return True


def _has_its_files(part, identity):
    try:
        described = json.loads(beside(part.path, ".json").read_text(encoding="utf-8"))
        return (
            not beside(part.path, ".beton.partial").exists()
            and described["conversion"] == identity["id"]
            and part.path.stat().st_size == described["bytes"]
            and beton.index_checksum(part.path) == described["index_xxh64"]
        )
    except (OSError, ValueError, KeyError):
        return False


class Unfinished:
    """The part of a conversion that is being written, as a context: outside of it the files are closed, and removed
    unless there is something in them to go on with."""

    def __init__(self, part: Part, growing: beton.Growing):
        self.part, self.growing = part, growing
        self._partial = beside(part.path, ".beton.partial")
        self.done = 0  # items of the part, stored or refused
        self.refused = np.zeros(0, np.int64)  # numbers of items
        self._refusals = []  # numbers and reasons that are in no record yet
        self._recorded = (0, 0)  # samples and stored images in the records
        self._syncing = ThreadPoolExecutor(1)  # the disk works while the next chunk is encoded
        self._pending = None
        self._checker, self._checked = None, queue.SimpleQueue()

    def __enter__(self):
        self.file = open_direct(self._partial)
        journal_file = os.open(beside(self.part.path, ".journal.partial"), os.O_RDWR | os.O_CREAT, 0o666)
        self._journal = os.fdopen(journal_file, "r+b")
        try:
            for record in journal.records(self._journal, self._holds):
                self._restore(record)
            beton.go_on(self.file, self.growing)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self._syncing.shutdown()
        self.growing.close()
        if self._checker:
            self._checker.end()
        worthless = self._journal.seek(0, os.SEEK_END) == 0
        for file in (self.file, self._journal):
            with contextlib.suppress(OSError):  # a full disk has been reported before; `finish` has synced the rest
                file.close()
        if worthless:
            self.discard()

    def discard(self):
        """Removes the files."""
        for end in (".beton.partial", ".journal.partial"):
            beside(self.part.path, end).unlink(missing_ok=True)

    def add(self, result, label: int):
        """The next item's `Encoded` images, or `Refused`."""
        if isinstance(result, Refused):
            self._refusals.append((self.part.items[self.done], result.reason))
        else:
            beton.append(self.file, self.growing, result, label)
        self.done += 1
        if self.done % CHUNK == 0 or self.done == len(self.part.items):
            self._record()

    def finish(self):
        """The .beton is whole, under its temporary name. Returns what `beton.write` does."""
        self._wait()
        return beton.finish(self._partial, self.file, self.growing)

    def reasons(self):
        """Yields (number of the item, why) of those that were refused."""
        for record in journal.records(self._journal):
            reasons = record["reasons"].tobytes().decode("utf-8", "surrogateescape").split("\n")
            yield from zip(record["refused"].tolist(), reasons, strict=False)

    def _record(self):
        beton.flush(self.file, self.growing)
        self._wait()
        growing, (samples, stored) = self.growing, self._recorded
        numbers, reasons = zip(*self._refusals, strict=True) if self._refusals else ((), ())
        record = {
            "done": np.array(self.done),
            "table": growing.table[samples : growing.samples],
            "allocations": growing.allocations[stored : growing.stored],
            "checksums": growing.checksums[stored : growing.stored],
            "places": np.array([*growing.places, growing.next_page]),
            "end": np.array(max(growing.places) if growing.stored else 0),
            "refused": np.array(numbers, np.int64),
            "reasons": np.frombuffer("\n".join(reasons).encode("utf-8", "surrogateescape"), np.uint8),
        }
        self._recorded, self._refusals = (growing.samples, growing.stored), []
        self.refused = np.append(self.refused, record["refused"])
        self._pending = self._syncing.submit(self._sync, record)

    def _sync(self, record):
        """The images first: what the journal says must be true."""
        os.fdatasync(self.file.fileno())
        if wrong := self._wrong(record):
            raise UserError(wrong)
        journal.add(self._journal, record)

    def _holds(self, record):
        return record["end"] <= self.file.seek(0, os.SEEK_END) and not self._wrong(record)

    def _wrong(self, record):
        """What is wrong with the images of which it tells, or None. A process of its own reads them: in this one,
        Python's lock would make the writing wait."""
        if not len(record["allocations"]):
            return None
        if self._checker is None:
            self._checker = Worker(functools.partial(_check_images, self._partial), self._checked)
        self._checker.give(self.part.items, [[record[name] for name in ("table", "allocations", "checksums")]])
        try:
            _, (refused,) = next_answer(self._checked, [self._checker])
        except UserError:
            raise UserError(
                f"the process that reads {self._partial} back died, for want of memory perhaps, or does not answer;"
                " the same command goes on behind what is finished"
            ) from None
        return refused and refused.reason

    def _wait(self):
        if self._pending:
            self._pending.result()

    def _restore(self, record):
        growing, (samples, stored) = self.growing, self._recorded
        growing.samples, growing.stored = samples + len(record["table"]), stored + len(record["checksums"])
        growing.table[samples : growing.samples] = record["table"]
        growing.allocations[stored : growing.stored] = record["allocations"]
        growing.checksums[stored : growing.stored] = record["checksums"]
        *growing.places, growing.next_page = record["places"].tolist()
        self.done, self.refused = int(record["done"]), np.append(self.refused, record["refused"])
        self._recorded = growing.samples, growing.stored


def _check_images(path, arrays):
    with open_direct(path, os.O_RDONLY) as file:
        beton.check_images(path, file, *arrays)


def probe(unfinished: Unfinished, split, encode):
    """Encodes some of the finished items again: `UserError` unless the images, and what is made of them, are as they
    were."""
    start, growing = unfinished.part.items.start, unfinished.growing
    owners = growing.allocations["sample_id"][: growing.stored]
    refused = _some(unfinished.refused)
    for number in [*_some(range(start, start + unfinished.done)), *refused]:
        (result,) = encode_all(encode, split.items[number : number + 1])
        before = int(np.searchsorted(unfinished.refused, number))
        if before < len(unfinished.refused) and unfinished.refused[before] == number:
            same = isinstance(result, Refused)
        else:
            sample = number - start - before
            known = growing.checksums[slice(*np.searchsorted(owners, (sample, sample + 1)))]
            same = not isinstance(result, Refused) and _checksums(result) == known.tolist()
        if not same:
            raise UserError(
                f"{split.names[number]} is not what it was when the unfinished {unfinished.part.path} was begun;"
                f" remove {beside(unfinished.part.path, '.journal.partial')} to begin it anew"
            )


def _some(numbers):
    """At most PROBES of them, evenly spread."""
    return numbers[:: max(1, -(-len(numbers) // PROBES))]


def _checksums(sample):
    """Of the images that are stored: one that equals the image of the level before is not."""
    pairs = zip(sample, (None, *sample), strict=False)
    return [image.checksum for image, before in pairs if image != before]
