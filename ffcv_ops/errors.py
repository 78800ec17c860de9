"""What a user can mend is a `UserError`: one line on stderr, exit status 2, no traceback. Ctrl-C is one line and status
130."""

import contextlib
import functools
import os
import select
import signal
import sys


class UserError(Exception):
    """The user's input cannot be used. The message is one line for each fault: what is wrong, where, and what to do."""


MAX_LINE = 4000  # characters of an error's line: more than any path has


def one_line(text: str, most: int = 300) -> str:
    """Text that is not ours (a file's name, words out of a file), for a terminal: at most so many characters, with
    control characters, line breaks, direction marks and undecodable bytes written as \\x1b, \\u2028, \\udcff."""
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text[:most])
    return shown if len(text) <= most else f"{shown}..."


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@contextlib.contextmanager
def writing(path):
    """What is inside writes to `path`, which the user chose; a place that does not take it is a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def reading(path):
    """What is inside reads from `path`; what the system refuses is a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def interruptible():
    """Before and after a command line's `main`, Ctrl-C ends the process with one line. Called before the imports, which
    take seconds and have nothing to put in order."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else someone wants it ignored, as nohup does
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number, frame):
    with contextlib.suppress(Exception):  # the stream may be in use by what was interrupted
        sys.stdout.flush()
    os.write(2, b"interrupted\n")
    os._exit(130)


def exits_cleanly(main):
    """Wraps a command line's `main` so that `UserError` ends it with one line and status 2, Ctrl-C with 130 and a line
    that has the words of the `KeyboardInterrupt`, if any, and a reader of its output that has read enough
    (`--help | head`) without a word."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        before = signal.getsignal(signal.SIGINT)
        if before is _end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return main(*args, **kwargs)
        except UserError as error:
            for line in str(error).split("\n"):
                print(f"error: {one_line(line, MAX_LINE)}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as interrupt:
            print("; ".join(["interrupted", *interrupt.args]), file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:
            if not _is_gone(sys.stdout):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            raise SystemExit(1) from None
        finally:
            if before is _end_at_once:
                signal.signal(signal.SIGINT, before)

    return wrapped


def _is_gone(stream) -> bool:
    """Whether nobody reads the pipe that the stream writes to."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
