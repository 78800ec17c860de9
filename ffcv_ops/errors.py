"""What a user can mend is a `UserError`: one line on stderr, exit status 2, no traceback. Ctrl-C is one line and status
130."""

import contextlib
import errno
import functools
import os
import re
import select
import signal
import sys
import threading
import time


class UserError(Exception):
    """The user's input cannot be used. The message is one line for each fault: what is wrong, where, and what to do."""


MAX_LINE = 4000  # characters of an error's line: more than any path has
PATIENCE = 10.0  # seconds in which an interrupted command puts things in order, and further Ctrl-Cs are not heard


def one_line(text: object, most: int = 300) -> str:
    """Text that is not ours (a file's name, words out of a file), for a terminal: at most so many characters, with
    control characters, line breaks, direction marks and undecodable bytes written as \\x1b, \\u2028, \\udcff."""
    text = str(text)
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text[:most])
    return shown if len(text) <= most else f"{shown}..."


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if char.isascii() else char.encode("ascii", "backslashreplace").decode()


@contextlib.contextmanager
def _using(path, what):
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be {what}: {error.strerror or error}") from error


def writing(path):
    """What is inside writes to `path`, which the user chose; a place that does not take it is a `UserError`."""
    return _using(path, "written")


def reading(path):
    """What is inside reads from `path`; what the system refuses is a `UserError`."""
    return _using(path, "read")


def interruptible():
    """Before and after a command line's `main`, Ctrl-C ends the process with one line. Called before the imports, which
    take seconds and have nothing to put in order."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else someone wants it ignored, as nohup does
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number, frame):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the line is written once
    with contextlib.suppress(Exception):  # the stream may be in use by what was interrupted
        sys.stdout.flush()
    os.write(2, b"interrupted\n")
    os._exit(130)


def _interrupt_once(number, frame):
    """Ctrl-C within `main`: what puts things in order is not interrupted by the next ones. Where that takes longer than
    PATIENCE, one more ends the process."""
    began = time.monotonic()

    def again(number, frame):
        if time.monotonic() - began > PATIENCE:
            _end_at_once(number, frame)

    signal.signal(signal.SIGINT, again)
    raise KeyboardInterrupt


def exits_cleanly(main):
    """Wraps a command line's `main` so that `UserError` ends it with one line and status 2, Ctrl-C, however often, with
    130 and a line that has the words of the `KeyboardInterrupt`, if any, and a reader of its output that has read
    enough (`--help | head`) without a word. A limit that is reached (memory, files, processes, the disk) is one line
    and status 2. Characters that a stream cannot show are printed as \\xe9."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError):  # closed, a stand-in, or redirected
                stream.reconfigure(errors="backslashreplace")
        sys.excepthook = _tell  # imports behind a `main` that only reads the command line may fail too
        before = signal.getsignal(signal.SIGINT)
        ours = before in (_end_at_once, signal.default_int_handler)
        ours = ours and threading.current_thread() is threading.main_thread()
        if ours:
            signal.signal(signal.SIGINT, _interrupt_once)
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            if ours and signal.getsignal(signal.SIGINT) is not _interrupt_once:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the interpreter has ended too
            print("; ".join(["interrupted", *interrupt.args]), file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:
            if not _is_gone(sys.stdout):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            raise SystemExit(1) from None
        except Exception as error:
            if not _is_told(error):
                raise
            raise SystemExit(2) from None
        finally:
            if ours and signal.getsignal(signal.SIGINT) is _interrupt_once:
                signal.signal(signal.SIGINT, before)

    return wrapped


_OUT_OF_MEMORY = "there is no memory left; end other programs, or raise the limit (ulimit -v, the container's)"
_NO_PROCESS = "no further process or thread can be started; raise the limit (ulimit -u, the container's)"
_LIMITS = {
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota of the disk is used up; make room",
    errno.EAGAIN: _NO_PROCESS,
    errno.ENOMEM: _OUT_OF_MEMORY,
}


def _is_told(error) -> bool:
    """Prints what the user can mend, a line for each fault; False where it is another error."""
    words = str(error) if isinstance(error, UserError) else _limit(error)
    for line in words.split("\n") if words else ():
        print(f"error: {one_line(line, MAX_LINE)}", file=sys.stderr)
    return bool(words)


def _tell(kind, error, trace):
    """Python's `excepthook`: what comes to the end of a program with nobody to catch it."""
    if not _is_told(error):
        return sys.__excepthook__(kind, error, trace)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(2)


def _limit(error) -> str | None:
    """Which limit of this process or machine was reached, and what raises it; None for other errors."""
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return (f"{error.filename}: " if error.filename else "") + _LIMITS[error.errno]
    words = str(error)
    if isinstance(error, MemoryError) or re.search("can(no|')t allocate memory|failed to map segment", words, re.I):
        return _OUT_OF_MEMORY
    return _NO_PROCESS if "can't start new thread" in words else None


def _is_gone(stream) -> bool:
    """Whether nobody reads the pipe that the stream writes to."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
