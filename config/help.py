"""What `--help` prints: usage, examples, arguments, and the config options ("keys") by what they change.

In: a parser's arguments and the sections of options. Out: text for the console: with bold names on a terminal, plain in
a pipe, never wider than MOST_COLUMNS.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence

from config.options import all_names, changes, full_name, options_of, to_yaml
from ffcv_ops.options import describe_type, nearest, parse_value

MOST_COLUMNS = 120
PIPED_COLUMNS = 100
GROUPS = {  # by what `changes` says
    "result": "Keys that change the result",
    "speed": "Keys that change the speed; the result stays, but for rounding, where a key does not say otherwise",
    "records": "Keys that change what is written down, and where",
}
HOW = """
Keys are given as --section.key=value; beside each is the value it has if nobody gives another.
--help WORD shows those with the word in their name: --help stage, --help lr."""


def show(
    usage: str,
    description: str,
    arguments: Sequence[tuple[str, str]],
    sections: Mapping[str, type],
    defaults: Mapping[str, Mapping],
    word: str = "",
) -> None:
    """Prints the help; with `word` only the keys whose name (section.key) holds it."""
    from rich.console import Console  # 0.1 s, and a run does not need it

    columns = min(shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns, MOST_COLUMNS)
    console = Console(width=columns, highlight=False, markup=False)
    with console.capture() as drawn:
        if not word:
            console.print(f"usage: {usage}\n\n{description.strip()}\n", soft_wrap=True)  # commands stay on one line
            console.print("Options", style="bold")
            console.print(_table([(name, "", text, "") for name, text in arguments]))
            console.print(HOW)
        for group, lead in GROUPS.items():
            rows = {cls: _rows(name, cls, defaults, group, word) for name, cls in sections.items()}
            if any(rows.values()):
                console.print(f"\n{lead}", style="bold underline")
            for cls in filter(rows.get, rows):
                title = cls.__doc__.partition("\n")[0].rstrip(".")
                console.print(f"\n{title}", style="bold")
                console.print(_table(rows[cls]))
    text = drawn.get() or f"no key has {word!r} in its name; the nearest is {nearest(word, all_names(sections))}"
    print("\n".join(line.rstrip() for line in text.splitlines()))


def _rows(section, cls, defaults, group, word):
    """(key, value, meaning, what it may be) of the keys of one section that belong to a group and have `word`."""
    rows = []
    for name, (kind, field) in options_of(cls).items():
        full = full_name(section, name)
        if changes(cls, field) == group and word in full:
            limits = field.metadata["limits"]
            value = defaults.get(section, {}).get(name, field.default)
            has_value = value is not dataclasses.MISSING
            shown = to_yaml(parse_value(kind, value, limits)) if has_value else "must be given"
            may_be = "" if kind is str else f" ({describe_type(kind, limits)})"
            rows.append((full, shown, field.metadata["help"], may_be))
    return rows


def _table(rows):
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for name, value, text, may_be in rows:
        table.add_row(Text(f"  {name}"), Text(value), Text(text).append(may_be, style="dim"))
    return table
