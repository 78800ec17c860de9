"""A range of rows or columns."""

from typing import NamedTuple


class Span(NamedTuple):
    """Integers: begin, begin + 1, ... end - 1."""

    begin: int
    end: int
