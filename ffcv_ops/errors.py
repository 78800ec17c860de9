"""What a user can mend is a `BadInput`: one line on stderr, exit status 2, no traceback."""

import functools
import os
import select
import sys
from contextlib import contextmanager


class BadInput(Exception):
    """The user's input cannot be used. The message is one line: what is wrong, where, and what to do."""


@contextmanager
def writing(path):
    """What is inside writes to `path`, which the user chose; a place that does not take it is a `BadInput`."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from error


def exits_cleanly(main):
    """Wraps a command line's `main` so that `BadInput` ends it with one line and status 2, Ctrl-C with 130, and a
    reader of its output that has read enough (`--help | head`) without a word."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:
            if not _is_gone(sys.stdout):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            raise SystemExit(1) from None

    return wrapped


def _is_gone(stream) -> bool:
    """Whether nobody reads the pipe that the stream writes to."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
