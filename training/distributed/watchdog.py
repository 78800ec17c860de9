"""Ends all ranks, and names the culprit, when one is dead, or does not move for `watchdog` minutes.

Each rank says where it is (`Watchdog.at`, and around each batch of a loader `watched`). A thread of each puts that into
torchrun's store every two seconds, with a count that shows that the process lives. The first rank reads all of them
and judges; the others read the first one's, and the verdict. The threads ask no device, and end the process
themselves, because the main thread may be inside a call that never returns.

A rank that died is known at once to ranks of its machine; of another machine, after `watchdog` minutes of silence, or
ten seconds where a collective has failed already.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil
from torch import distributed

from config.text import format_duration
from ffcv_ops.errors import UserError
from training.distributed import Ranks, barrier
from training.distributed.stop import Stopped

TICK = 2.0  # seconds
SOON = 10.0  # seconds; of silence, which are enough where a collective has failed; of a failed rank, to end by itself
STATUS = 1
DONE = "done"


class Beat(NamedTuple):
    """What a rank says of itself."""

    rank: int
    host: str  # with the name space of its processes' numbers
    pid: int
    count: int  # of beats
    moves: int  # how often its place changed
    place: str
    since: str  # the clock of its machine
    waits: bool  # for the loader
    left: str = ""  # how it ended, once it has

    def __str__(self):
        return f"rank {self.rank} ({self.host.partition(' ')[0]}, process {self.pid})"


class Seen(NamedTuple):
    """A beat as another rank sees it: seconds since the count and since the moves changed, and since it left."""

    beat: Beat
    silent: float
    still: float
    gone: bool  # its process is no longer there


def verdict(ranks: Sequence[Seen], limit: float, *, failed: bool) -> str | None:
    """Why the run must end, or None. `limit`: seconds; `failed`: whether a collective has failed already."""
    for seen in ranks:
        if seen.beat.left and seen.beat.left != DONE and seen.silent > SOON:
            return f"{seen.beat} ended: {seen.beat.left}"
        if seen.gone and not seen.beat.left:
            return f"{seen.beat} is gone: killed or crashed; it was last {_where(seen.beat)}"
        if seen.silent > (min(SOON, limit) if failed else limit) and not seen.beat.left:
            silent = format_duration(seen.silent)
            return f"{seen.beat} gives no sign of life for {silent}; it was last {_where(seen.beat)}"
    there = [seen for seen in ranks if not seen.beat.left]
    if not any(seen.still > limit for seen in there):
        return None
    waiting = [seen for seen in there if seen.beat.waits and seen.still > limit / 2]  # the others wait for these
    culprit = max(waiting, key=lambda s: s.still) if waiting else min(there, key=lambda s: (s.beat.moves, -s.still))
    message = f"{culprit.beat} is {_where(culprit.beat)}, for {format_duration(culprit.still)}"
    return f"{message}. Where that is no fault, raise --watchdog"


def _where(beat):
    return f"{beat.place} since {beat.since}"


class Watchdog:
    """A context; within, `at` says where this rank is. `minutes`: None switches all of it off."""

    def __init__(self, minutes: float | None, ranks: Ranks):
        self.limit, self.ranks = minutes and 60 * minutes, ranks
        self.host = f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
        self.place, self.left, self.count = (0, "starting", time.strftime("%H:%M:%S"), False), "", 0
        self.failed, self.ended, self.store = False, threading.Event(), None
        self.known, self.changed = {}, {}  # beats by rank; when this thread saw their count and moves change
        self.clock = 0.0  # of this thread: time in which the process was suspended does not count

    def at(self, place: str, *, waits: bool = False) -> None:
        """This rank is now `place` ("past batch 3"); `waits`: for its loader."""
        self.place = (self.place[0] + 1, place, time.strftime("%H:%M:%S"), waits)

    def watched(self, loader, words: str):
        """The loader, its epochs saying for which batch this rank waits. `words`: "stage x"."""
        return loader if self.limit is None else _Watched(loader, self.at, words)

    def __enter__(self):
        if self.limit is not None:
            if self.ranks.world > 1:
                self.store = _connection()
            self._beat()
            barrier()
            self._listen()
            self.thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self.thread.start()
        return self

    def __exit__(self, kind, error, trace):
        if self.limit is None:
            return
        orderly = error is None or isinstance(error, Stopped)
        if not orderly and self.store is not None and not isinstance(error, (UserError, KeyboardInterrupt)):
            self.failed = True
            self.ended.wait(SOON + 2 * TICK)  # a collective that fails is another rank's end: the thread finds whose
        self.left = DONE if orderly else f"{kind.__name__}: {error}".partition("\n")[0][:300]
        self.ended.set()
        self.thread.join()
        with suppress(RuntimeError):  # the store may be gone by now
            self._beat()
        if orderly:
            barrier()

    def _beat(self):
        self.count += 1
        moves, place, since, waits = self.place
        mine = Beat(self.ranks.rank, self.host, os.getpid(), self.count, moves, place, since, waits, self.left)
        self.known[mine.rank] = mine
        if self.store is not None:
            self.store.set(f"rank{mine.rank}", json.dumps(mine))

    def _listen(self):
        others = range(1, self.ranks.world) if self.ranks.is_main else [0]
        for text in self.store.multi_get([f"rank{rank}" for rank in others]) if self.store else ():
            beat = Beat(*json.loads(text))
            self.known[beat.rank] = beat

    def _watch(self):
        last = time.monotonic()
        while not self.ended.wait(min(TICK, self.limit / 4)):
            now = time.monotonic()
            self.clock, last = self.clock + min(now - last, 2 * TICK), now
            try:
                self._beat()
                message = self._judged()
            except RuntimeError as error:  # torch's errors of the store
                message = self._without_store(error)
            if message and not self.ended.is_set():
                print(f"error: rank {self.ranks.rank} ends: {message}", file=sys.stderr, flush=True)
                if self.store is not None and self.ranks.is_main:
                    time.sleep(2 * TICK)  # the store may end with this process; the others read the verdict first
                os._exit(STATUS)

    def _judged(self):
        if self.store is not None and self.store.check(["verdict"]):
            return self.store.get("verdict").decode()
        self._listen()
        if self.ranks.is_main:
            message = verdict([self._seen(beat) for beat in self.known.values()], self.limit, failed=self.failed)
        else:  # only whether the first rank lives: who stands still is its to judge, as it sees all of them
            message = verdict([self._seen(self.known[0])._replace(still=0.0)], self.limit, failed=self.failed)
        if message and self.store is not None:
            self.store.set("verdict", message)
        return message

    def _without_store(self, error):
        first, reason = self.known[0], str(error).partition("\n")[0]
        if first.left:
            return f"{first} ended: {first.left}"
        return f"{first} or its machine is gone: its store does not answer ({reason:.100})"

    def _seen(self, beat):
        now, ages = self.clock, []
        for name in ("count", "moves"):
            before, since = self.changed.get((beat.rank, name), (None, now))
            since = since if before == getattr(beat, name) else now
            self.changed[beat.rank, name] = getattr(beat, name), since
            ages.append(now - since)
        return Seen(beat, *ages, gone=beat.host == self.host and not _lives(beat.pid))


def _connection():
    """To torchrun's store, of its own: a call that waits in the main thread's would hold it up."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(host, port, is_master=False, wait_for_workers=False)
    return distributed.PrefixStore(f"watchdog{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", store)


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Watched:
    """A loader whose epochs say what they wait for."""

    def __init__(self, loader, at, words):
        self.loader, self.at, self.words = loader, at, words
        self.corrupt_samples = loader.corrupt_samples

    def __len__(self):
        return len(self.loader)

    def epoch(self, number: int, start: int = 0, **options):
        batches, batch = iter(self.loader.epoch(number, start, **options)), start
        while True:
            batch += 1
            self.at(f"waiting for its loader, {self.words}, epoch {number + 1}, batch {batch}", waits=True)
            found = next(batches, None)
            self.at(f"past loading, {self.words}, epoch {number + 1}, batch {batch}")
            if found is None:
                return
            yield found
