"""Files that are whole or not there, and files that one process at a time holds."""

import contextlib
import fcntl
import os
from pathlib import Path

from ffcv_ops.errors import UserError, writing


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
