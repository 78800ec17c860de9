"""Numbers and tables in words: what the console, Markdown pages and messages show. Imports nothing heavy."""

import itertools
from collections.abc import Sequence

_DURATIONS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def format_duration(seconds: float) -> str:
    """A time in two units: 40 s, 3 min 20 s, 5 h 10 min, 3 d 4 h."""
    seconds = round(seconds)
    for (unit, size), (smaller, part) in itertools.pairwise(_DURATIONS):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"


def format_bytes(number: float) -> str:
    """Bytes in the decimal units that disks are sold in, with three digits: 0.512 KB, 12.3 MB, 1.2 TB."""
    units = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3))
    unit, size = next(((unit, size) for unit, size in units if number >= size), units[-1])
    return f"{number / size:,.3g} {unit}"


def markdown_table(rows: Sequence[Sequence[str]], *, left: int = 0) -> str:
    """A Markdown table that also reads well on a console. The first row holds the headings; the first `left` columns
    are aligned to the left, the others to the right."""
    from tabulate import tabulate  # a run needs it only at its end

    columns = len(rows[0])
    return tabulate(
        rows[1:],
        headers=rows[0],
        tablefmt="pipe",
        disable_numparse=True,  # 5.10 stays 5.10
        colalign=["left"] * left + ["right"] * (columns - left),
    )
