"""The report of a run, a pure function of its folder: collect.py reads the folder, curves.py and tables.py say what is
in it, page.py makes report.html of that, png.py curves.png. compare.py lays several runs side by side.

    python -m report RUN              # makes a run's report anew
    python -m report RUN RUN ... --out compare.html
"""

import time
from pathlib import Path

from ffcv_ops.errors import UserError

# What makes pages and pictures is imported when one is made: a run needs it after its first epoch, --help never.

EVERY = 60.0  # seconds at least between two reports of a running run


def refresh(folder: Path, *, say) -> None:
    """report.html anew while the run goes on, unless it is fresh. What goes wrong with it costs a line, not the run."""
    made = folder / "report.html"
    if made.exists() and 0 <= time.time() - made.stat().st_mtime < EVERY:
        return
    from report import page
    from report.collect import collect

    try:
        _save(made, page.render(collect(folder)))
    except Exception as error:  # a view of the log must not end what is logged
        say(f"warning: {made} was not made ({type(error).__name__}: {error})")


def write(folder: Path) -> str:
    """report.html and curves.png; of a finished run report.md too. Returns what the console says at the end."""
    from report.collect import collect

    try:
        return _write(collect(folder))
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written ({error.strerror}); make room, then run"
            f" `python -m report {folder}`"
        ) from error


def _write(facts) -> str:
    from ffcv_ops.files import write_atomically
    from report import page, png
    from report.tables import padded, stage_table

    folder, said = facts.path, padded(stage_table(facts))
    _save(folder / "report.html", page.render(facts))
    write_atomically(folder / "curves.png", lambda path: png.draw(facts, path))
    if facts.finished:
        text = (
            f"# {facts.name}\n\nModel {facts.run.model.name}, seed {facts.run.seed}; recipe in recipe.yaml, machine and"
            f" versions in environment.json, everything in report.html.\n\n{said}\n\n![curves](curves.png)\n"
        )
        _save(folder / "report.md", text)
    weights = f"   weights: {folder / 'model.safetensors'}" if facts.finished else ""
    return f"\n{said}\n\nreport: {folder / 'report.html'}{weights}"


def _save(path: Path, text: str) -> None:
    from ffcv_ops.files import write_atomically

    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
