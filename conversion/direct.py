"""Reading and writing around the system's page cache (O_DIRECT), where the file system can. Filling that cache can take
longer than all the rest of a conversion, and pushes other files out of it.

Places, lengths and memory must then be multiples of BLOCK. Where the system refuses such an access (some network
mounts; a limit on the file's length cuts it short), the file is read and written through the cache from then on.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from pathlib import Path

BLOCK = 4096  # bytes


def open_direct(path: Path, flags: int = os.O_RDWR | os.O_CREAT):
    """The file without a buffer of Python's, created if need be."""
    mode = "r+b" if flags & os.O_RDWR else "rb"
    with contextlib.suppress(OSError):
        return os.fdopen(os.open(path, flags | os.O_DIRECT, 0o666), mode, buffering=0)
    return os.fdopen(os.open(path, flags, 0o666), mode, buffering=0)


def aligned_buffer(size: int) -> memoryview:
    """Zeroed memory of at least `size` bytes, on a page boundary, as direct access needs."""
    return memoryview(mmap.mmap(-1, next_multiple(size)))


def next_multiple(position: int, step: int = BLOCK) -> int:
    """`position` rounded up to a multiple of `step`."""
    return -(-position // step) * step


def write_at(file, place: int, data: memoryview):
    """Writes all of it."""
    while data:  # the system may take a part; why, it says at the next call
        written = _access(file, os.pwrite, data, place)
        data, place = data[written:], place + written


def read_at(file, place: int, data: memoryview) -> int:
    """Fills the memory, up to the file's end at most; returns the number of bytes read."""
    filled = 0
    while filled < len(data):
        count = _access(file, os.preadv, [data[filled:]], place + filled)
        if not count:
            break
        filled += count
    return filled


def _access(file, access, *arguments):
    try:
        return access(file.fileno(), *arguments)
    except OSError as error:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return access(file.fileno(), *arguments)
