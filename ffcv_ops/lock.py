"""A file that one process at a time holds, and that outlives it when it is killed."""

import contextlib
import fcntl
import os
from pathlib import Path

from ffcv_ops.errors import UserError, writing


@contextlib.contextmanager
def alone(path: Path, what: str):
    """Gives the open file `path`, created if need be, which no other process gets meanwhile: another one is told that
    `what` is being written. The lock ends with the process; the file stays until someone removes it."""
    with writing(what):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with writing(what):
            file = open(path, "a+b")  # noqa: SIM115  closed below, or in the next round
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"{what} is being written by another process; wait for it, or stop it") from None
        except OSError:
            pass  # a network mount without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # it was removed by the one who held it before
    with file:
        yield file
