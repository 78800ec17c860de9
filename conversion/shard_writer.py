"""One shard while it is written, in a way that survives a kill.

x.beton.partial holds the images. After every CHUNK items they are synced and read back from the disk; then a record of
what the tables say of them goes into x.journal.partial. A restart continues behind the last record that is sound.
"""

import contextlib
import functools
import os
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from conversion import beton, journal
from conversion.beton import BetonWriter
from conversion.direct import open_direct
from conversion.encode import Refused
from conversion.read_back import check_images
from conversion.shards import Shard, beside
from conversion.workers import Worker, next_answer
from ffcv_ops.errors import UserError

CHUNK = 1024  # items between two records: what a kill can cost; 50 MB of ImageNet's JPEGs to sync at a time


class ShardWriter:
    """A context. Outside of it the files are closed, and removed unless they hold something to continue from.

    done: how many items of the shard were stored or refused. refused: the numbers of the refused items in the journal.
    """

    def __init__(self, shard: Shard, page_size: int, images: Sequence[str] = beton.SINGLE):
        self.shard = shard
        self.done, self.refused = 0, np.zeros(0, np.int64)
        self._options = len(shard.items), page_size, images
        self._partial = beside(shard.path, ".beton.partial")
        self._new_refusals = []  # (number, reason) that are in no record yet
        self._recorded = (0, 0)  # samples and stored images in the records
        self._syncing = ThreadPoolExecutor(1)  # the disk works while the next chunk is encoded
        self._pending = None
        self._reader, self._answers = None, queue.SimpleQueue()

    def __enter__(self):
        self.beton = BetonWriter(self._partial, *self._options)
        journal_file = os.open(beside(self.shard.path, ".journal.partial"), os.O_RDWR | os.O_CREAT, 0o666)
        self._journal = os.fdopen(journal_file, "r+b")
        try:
            for record in journal.records(self._journal, self._is_sound):
                self.beton.restore(record)
                self.done, self.refused = int(record["done"]), np.append(self.refused, record["refused"])
                self._recorded = self.beton.samples, self.beton.stored
            self.beton.resume()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self._syncing.shutdown()
        if self._reader:
            self._reader.end()
        is_empty = self._journal.seek(0, os.SEEK_END) == 0
        for file in (self.beton, self._journal):
            with contextlib.suppress(OSError):  # a full disk was reported before, and `finish` has synced the rest
                file.close()
        if is_empty:
            self.discard()

    def discard(self):
        """Removes the files."""
        for end in (".beton.partial", ".journal.partial"):
            beside(self.shard.path, end).unlink(missing_ok=True)

    def add(self, result, label: int):
        """The next item's `Encoded` images, or `Refused`."""
        if isinstance(result, Refused):
            self._new_refusals.append((self.shard.items[self.done], result.reason))
        else:
            self.beton.append(result, label)
        self.done += 1
        if self.done % CHUNK == 0 or self.done == len(self.shard.items):
            self._record()

    def skipped(self) -> int:
        """How many items were refused."""
        return len(self.refused) + len(self._new_refusals)

    def finish(self):
        """Completes the .beton under its temporary name. Returns what `BetonWriter.finish` does."""
        self._wait()
        return self.beton.finish()

    def reasons(self):
        """Yields (number of the item, reason) of the refused items."""
        for record in journal.records(self._journal):
            reasons = record["reasons"].tobytes().decode("utf-8", "surrogateescape").split("\n")
            yield from zip(record["refused"].tolist(), reasons, strict=False)

    def _record(self):
        self.beton.flush()
        self._wait()
        numbers, reasons = zip(*self._new_refusals, strict=True) if self._new_refusals else ((), ())
        record = {
            "done": np.array(self.done),
            **self.beton.state_since(*self._recorded),
            "end": np.array(max(self.beton.positions) if self.beton.stored else 0),
            "refused": np.array(numbers, np.int64),
            "reasons": np.frombuffer("\n".join(reasons).encode("utf-8", "surrogateescape"), np.uint8),
        }
        self._recorded, self._new_refusals = (self.beton.samples, self.beton.stored), []
        self.refused = np.append(self.refused, record["refused"])
        self._pending = self._syncing.submit(self._sync, record)

    def _sync(self, record):
        os.fdatasync(self.beton.file.fileno())  # the images first: what the journal says must be true
        if fault := self._fault(record):
            raise UserError(fault)
        journal.add(self._journal, record)

    def _is_sound(self, record):
        return record["end"] <= self.beton.file.seek(0, os.SEEK_END) and not self._fault(record)

    def _fault(self, record):
        """What is wrong with the record's images on the disk, or None."""
        if not len(record["allocations"]):
            return None
        if self._reader is None:
            # A process of its own: in this one, Python's lock would make the writing wait.
            self._reader = Worker(functools.partial(_check_images, self._partial), self._answers)
        arrays = [record[name] for name in ("table", "allocations", "checksums")]
        self._reader.give(self.shard.items, [arrays])
        try:
            _, (refused,) = next_answer(self._answers, [self._reader])
        except UserError:
            raise UserError(
                f"the process that reads {self._partial} back died, perhaps for lack of memory, or does not answer;"
                " run the same command again: it continues behind the finished images"
            ) from None
        return refused and refused.reason

    def _wait(self):
        if self._pending:
            self._pending.result()


def _check_images(path, arrays):
    with open_direct(path, os.O_RDONLY) as file:
        check_images(path, file, *arrays)
