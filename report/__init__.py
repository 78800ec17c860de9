"""The report of a run, a pure function of its folder: collect.py reads the folder, curves.py and tables.py say what is
in it, charts.py draws, page.py makes report.html of that. compare.py lays several runs side by side.

    python -m report RUN              # makes a run's report anew
    python -m report RUN RUN ... --out compare.html

What is needed for a page (matplotlib, jinja2) is imported when one is made: training begins without it.
"""

import time
from pathlib import Path

from ffcv_ops.errors import UserError
from ffcv_ops.files import write_atomically

EVERY = 60.0  # seconds at least between two reports of a running run


def refresh(folder: Path, *, say) -> None:
    """report.html anew while the run goes on, unless it is fresh. What goes wrong with it costs a line, not the run."""
    path = folder / "report.html"
    try:
        if path.exists() and 0 <= time.time() - path.stat().st_mtime < EVERY:
            return
        from report import collect, page

        _save(path, page.render(collect.collect(folder)))
    except Exception as error:  # a view of the log must not end what is logged
        say(f"warning: {path} was not made ({type(error).__name__}: {error})")


def write(folder: Path) -> str:
    """report.html and curves.png; of a finished run report.md too. Returns what the console says at the end."""
    from config.text import markdown_table
    from report import charts, collect, page, tables

    facts = collect.collect(folder)
    table = markdown_table(tables.stage_table(facts), left=1)
    try:
        _save(folder / "report.html", page.render(facts))
        write_atomically(folder / "curves.png", lambda temporary: charts.draw_png(facts, temporary))
        if facts.finished:
            about = (
                f"Model {facts.recipe.model.name}, seed {facts.recipe.seed}; recipe in recipe.yaml, machine and"
                " versions in environment.json, everything in report.html."
            )
            _save(folder / "report.md", f"# {facts.name}\n\n{about}\n\n{table}\n\n![curves](curves.png)\n")
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written ({error.strerror}); make room, then run"
            f" `python -m report {folder}`"
        ) from error
    weights = f"   weights: {folder / 'model.safetensors'}" if facts.finished else ""
    return f"\n{table}\n\nreport: {folder / 'report.html'}{weights}"


def _save(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
