"""What a check found, and how all findings are shown: a table, then the lines that mend what is not well."""

import shutil
from collections.abc import Sequence
from typing import NamedTuple

OK, WARNING, FAULT = "ok", "warning", "fault"


class Finding(NamedTuple):
    """A row: what was looked at, how it is (OK, WARNING, FAULT), what was found, and the line that mends it."""

    what: str
    state: str
    found: str
    fix: str = ""


def show(findings: Sequence[Finding]) -> None:
    """The table, then the lines that mend what is not well."""
    print("\n".join(_table(findings)))
    wrong = [finding for finding in findings if finding.state != OK]
    for finding in sorted(wrong, key=lambda finding: finding.state != FAULT):
        print(f"\n{finding.state}: {finding.what}: {finding.found}" + (f"\n    {finding.fix}" if finding.fix else ""))
    faults = sum(finding.state == FAULT for finding in findings)
    print(f"\nfaults: {faults}, warnings: {len(wrong) - faults}" + ("" if faults else "; this machine can train"))


def _table(findings):
    """Its lines; without colours and wrapping where rich is missing."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return [f"{state:9}{what:18}{found}" for what, state, found, _ in findings]
    console = Console(width=min(shutil.get_terminal_size((110, 24)).columns, 140), highlight=False, markup=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    styles = {OK: None, WARNING: "yellow", FAULT: "bold red"}
    for what, state, found, _ in findings:
        table.add_row(state, what, found, style=styles[state])
    with console.capture() as drawn:
        console.print(table)
    return [line.rstrip() for line in drawn.get().splitlines()]
