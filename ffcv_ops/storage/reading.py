"""Where the bytes of the stored images come from: FFCV's memory managers, ours.

`Files`: each decoding thread reads its image from the file, which the system's page cache may hold. Where a mapped file
that is cut while it is read kills the process by a bus error, this is an error like any other; and what was checked is
what is decoded, because it is a copy. `Pages`: whole pages are read ahead into this process's memory.

Both open the files at the start of an epoch, and hold against the index that they are still those that it describes.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numba import types

from ffcv_ops.compiled import kernel
from ffcv_ops.errors import UserError
from ffcv_ops.files import open_regular
from ffcv_ops.stock import MemoryContext, MemoryManager
from ffcv_ops.storage.beton_file import identity
from ffcv_ops.storage.index import Index, column, pages_of

IN_MEMORY = -1  # instead of a file descriptor
READS = 4  # of the same place, before it counts as unreadable: a signal may end a read

_pread = types.ExternalFunction("pread", types.int64(types.int32, types.uintp, types.uint64, types.uint64))


@kernel
def fetch(file, place, size, buffer):
    """The address of an image's bytes, which lie at the address `place` or are read from there in `file` (a descriptor)
    to `buffer` (uint8, long enough); 0 when they cannot be read, at READS in a row, or the file ends before."""
    if file == IN_MEMORY:
        return place
    address, done, size = np.uint64(buffer.ctypes.data), np.uint64(0), np.uint64(size)
    failed = 0
    while done < size:
        count = _pread(file, address + done, size - done, place + done)
        if count > 0:
            done += np.uint64(count)
            failed = 0
            continue
        failed += 1
        if count == 0 or failed == READS:
            return np.uint64(0)
    return address


class _Epoch(MemoryContext):
    """The files, open for one epoch. FFCV calls `start_batch` before each batch; the loader `check` after it."""

    def __init__(self, index: Index):
        self.index = index
        self.starts = np.array([file.start for file in index.files], np.uint64)
        self.handles = []

    def __enter__(self):
        try:
            for file in self.index.files:
                self.handles.append(open_regular(file.path))
            self.check()
        except OSError as error:
            self.__exit__()
            raise UserError(f"{error.filename}: cannot be opened any more: {error.strerror}") from error
        except UserError:
            self.__exit__()
            raise
        self.descriptors = np.array([handle.fileno() for handle in self.handles], np.int32)
        return self

    def __exit__(self, *failure):
        for handle in self.handles:
            handle.close()

    def check(self) -> None:
        """Raises UserError when a file has changed since the index was read."""
        for file, handle in zip(self.index.files, self.handles, strict=True):
            now = identity(os.fstat(handle.fileno()))
            if now[:-1] != file.identity[:-1]:
                what = "was cut, replaced or written to"
            elif now != file.identity and self.index.checksums is None:  # else each image is held against its own
                what = "has no checksums, and was written to, renamed, linked or given other rights"
            else:
                continue
            raise UserError(
                f"{file.path}: {what} while it was in use; put back what was there and start again: the run goes on"
                " from its last checkpoint"
            )

    @property
    def state(self):
        """What `locate` gets."""
        return self

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each place in the row of all files: the file's descriptor (int32) and the place in it (uint64)."""
        number = np.searchsorted(self.starts, places, side="right") - 1
        return self.descriptors[number], places - self.starts[number]


class Files(MemoryManager):
    """Images are read one by one where they are needed."""

    def __init__(self, index: Index):
        self.index = index

    def schedule_epoch(self, batches):
        return _Epoch(self.index)

    def compile_reader(self):
        """FFCV's name for it: how the decoders find images. (Nothing is compiled.)"""
        return lambda places, epoch: epoch.locate(places)

    @property
    def state_type(self):
        raise NotImplementedError("what FFCV would compile with it is not compiled")


class Pages(Files):
    """Whole pages are read ahead, for files that are larger than memory on a slow disk.

    Pages of the full level alone are kept from their first use to their last: a page of a smaller one belongs to many
    of the full level's.
    """

    def __init__(self, index: Index):
        super().__init__(index)
        self.page_of = pages_of(column(index, "image"), index.page_size)

    def schedule_epoch(self, batches):
        needed = [np.unique(self.page_of[sample_ids % len(self.page_of)]) for sample_ids in batches]
        return _PagedEpoch(self.index, needed)


class _PagedEpoch(_Epoch):
    """An epoch whose batch number k needs the pages `needed[k]`."""

    AHEAD, THREADS = 3, 12  # batches; reads at a time, as FFCV has them

    def __init__(self, index: Index, needed: list[np.ndarray]):
        super().__init__(index)
        self.needed = needed
        self.last_use = {}
        for number, pages in enumerate(needed):
            self.last_use.update(dict.fromkeys(pages.tolist(), number))
        self.loaded: dict[int, Future] = {}
        self.free: list[np.ndarray] = []
        self.submitted = 0
        self.readers = ThreadPoolExecutor(self.THREADS, thread_name_prefix="read")

    def __exit__(self, *failure):
        self.readers.shutdown(cancel_futures=True)
        super().__exit__()
        self.loaded.clear()
        self.free.clear()

    def start_batch(self, batch: int):
        """Lets go of what no later batch needs, and asks for what the next ones need."""
        for page in [page for page in self.loaded if self.last_use.get(page, -1) < batch]:
            self.free.append(self.loaded.pop(page).result())
        while self.submitted < min(batch + self.AHEAD + 1, len(self.needed)):
            for page in self.needed[self.submitted].tolist():
                self._ask(page)
            self.submitted += 1

    def locate(self, places):
        """No descriptor, and addresses in memory; a page that nobody foresaw is read now."""
        pages = places // np.uint64(self.index.page_size)
        asked, which = np.unique(pages, return_inverse=True)
        addresses = [self._ask(page).result().ctypes.data for page in asked.tolist()]
        inside = places % np.uint64(self.index.page_size)
        return (
            np.full(places.shape, IN_MEMORY, np.int32),
            np.array(addresses, np.uint64)[which].reshape(places.shape) + inside,
        )

    def _ask(self, page: int) -> Future:
        if page not in self.loaded:
            memory = self.free.pop() if self.free else np.empty(self.index.page_size, np.uint8)
            self.loaded[page] = self.readers.submit(self._read, page, memory)
        return self.loaded[page]

    def _read(self, page: int, memory: np.ndarray) -> np.ndarray:
        """A page's bytes; the last one of a file ends where the file ends."""
        start = page * self.index.page_size
        number = int(np.searchsorted(self.starts, start, side="right")) - 1
        file, done = self.index.files[number], 0
        start -= file.start
        expected = min(self.index.page_size, file.identity[2] - start)
        while done < expected:
            try:
                count = os.preadv(self.descriptors[number], [memory[done:expected]], start + done)
            except OSError as error:
                raise UserError(f"{file.path}: cannot be read at {start + done}: {error.strerror}") from error
            if count == 0:
                raise UserError(f"{file.path}: was cut while it was in use; put the file back that was there")
            done += count
        return memory
