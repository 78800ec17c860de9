"""What the command lines of several benchmarks share."""

import sys

from ffcv_ops.errors import UserError


def say(words: str):
    """Progress, which is not part of the results."""
    print(words, file=sys.stderr, flush=True)


def chosen(kind: str, words: str | None, known, default) -> list[str]:
    """The names in "A,B", each of which must be `known`; the default where nothing is given."""
    if not words:
        return list(default)
    for name in words.split(","):
        if name not in known:
            raise UserError(f"{name!r} is not a {kind} here; there are {', '.join(known)}")
    return words.split(",")
