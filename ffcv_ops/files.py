"""Files that are regular ones, files that are whole or not there, and files that one process at a time holds."""

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from ffcv_ops.errors import UserError, reading, writing

MOST_TEXT = 2**28  # bytes of a file that is read whole: a file of holes can claim any size
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
          stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}  # fmt: skip


class Irregular(UserError):
    """No file that can be read to its end; `reason` says why, without the path."""

    def __init__(self, path, reason: str):
        super().__init__(f"{path} {reason}")
        self.reason = reason


def open_regular(path, most: int | None = None):
    """Opens a regular file of at most `most` bytes, to be read. What would block or never end, such as a pipe or a
    device, is `Irregular`, and so is a link that leads nowhere; OSError where the system refuses."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or a pipe without a writer would block
    except OSError:
        if os.path.islink(path) and not os.path.exists(path):
            raise Irregular(path, f"is a link to {os.readlink(path)}, which is not there") from None
        if os.path.exists(path) and not os.path.isfile(path):  # a socket cannot even be opened
            raise Irregular(path, _what_it_is(os.stat(path))) from None
        raise
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and (most is None or status.st_size <= most):
        return os.fdopen(file, "rb")
    os.close(file)
    if stat.S_ISREG(status.st_mode):
        raise Irregular(path, f"has {status.st_size:,} bytes, where at most {most:,} are expected")
    raise Irregular(path, _what_it_is(status))


def _what_it_is(status):
    return f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file"


def read_regular(path, most: int = MOST_TEXT) -> bytes:
    """All bytes of a regular file; a UserError in one line where they cannot be had."""
    with reading(path), open_regular(path, most) as file:
        return file.read()


class Locked(UserError):
    """Another process holds the file."""


def write_atomically(path: Path, write) -> None:
    """Calls write(temporary path) and renames the result to `path` once it is safely on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's, which can only be asked for by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(path: Path, what: str):
    """Gives the open file `path`, created if need be, which no other process gets meanwhile: another one is told that
    `what` is being written. What is in the file stays. The lock ends with the process, however that ends; the file
    stays until someone removes it."""
    with writing(what):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with writing(what):
            file = open(path, "a+b")  # noqa: SIM115  closed below, or in the next round
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.close()
                raise Irregular(path, "is not a file; remove it")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Locked(f"{what} is being written by another process; wait for it, or stop it") from None
        except OSError:
            pass  # a network mount without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # it was removed by the one who held it before
    with file:
        yield file
