"""What a user can mend is a `BadInput`: one line on stderr, exit status 2, no traceback."""

import functools
import sys


class BadInput(Exception):
    """The user's input cannot be used. The message is one line: what is wrong, where, and what to do."""


def exits_cleanly(main):
    """Wraps a command line's `main` so that `BadInput` ends it with one line and status 2, and Ctrl-C with 130."""

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

    return wrapped
