"""Files that are read and written around the system's page cache, where the file system can: filling that cache can
take longer than all else that a conversion does, and drives other files out of it.

Places, lengths and memory must then be multiples of BLOCK. Where the system refuses an access all the same (a limit on
the length of a file cuts it short; some network mounts), the file goes on through the cache.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from pathlib import Path

BLOCK = 4096  # bytes


def open_direct(path: Path, flags: int = os.O_RDWR | os.O_CREAT):
    """The file, without a buffer of Python's."""
    mode = "r+b" if flags & os.O_RDWR else "rb"
    with contextlib.suppress(OSError):
        return os.fdopen(os.open(path, flags | os.O_DIRECT, 0o666), mode, buffering=0)
    return os.fdopen(os.open(path, flags, 0o666), mode, buffering=0)


def room(size: int) -> memoryview:
    """Memory of at least `size` bytes that can be read to and written from."""
    return memoryview(mmap.mmap(-1, next_multiple(size)))


def next_multiple(position: int, step: int = BLOCK) -> int:
    return -(-position // step) * step


def write_at(file, place: int, data: memoryview):
    """Writes all of it; the system may take a part, and says at the next one why."""
    while data:
        written = _accessed(file, os.pwrite, data, place)
        data, place = data[written:], place + written


def read_at(file, place: int, data: memoryview) -> int:
    """Fills the memory up to the file's end; returns how many bytes there were."""
    filled = 0
    while filled < len(data):
        there = _accessed(file, os.preadv, [data[filled:]], place + filled)
        if not there:
            break
        filled += there
    return filled


def _accessed(file, access, *arguments):
    try:
        return access(file.fileno(), *arguments)
    except OSError as error:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return access(file.fileno(), *arguments)
