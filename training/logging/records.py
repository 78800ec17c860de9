"""The JSON files of a run's folder: log.jsonl, written line by line, and the others, written whole.

A row of log.jsonl is a flat object. `kind` is step (a log point), epoch or warning; `stage`, `epoch` and `step` say
where. Losses are in nats, accuracies are shares from 0 to 1, `seconds` are those of training, `wait` is the share of
them that the loop waited for data. `wall`: seconds that the run has taken until then, restarts included. `at`: when the
row was written, in seconds since 1970. A warning's text is in `message`.

These files lie on disks that fill up, under processes that are killed. So reading leaves out what is no row, and says
how much that was: a damaged line must not keep a run, whose checkpoints are whole, from going on.
"""

import json
import math
from contextlib import suppress
from pathlib import Path

from ffcv_ops.errors import UserError
from ffcv_ops.files import read_regular, write_atomically

_MEANS = ("lr", "loss", "grad_norm", "images_per_s", "wait", "seconds")
_REQUIRED = {"step": _MEANS, "epoch": _MEANS, "warning": ("message",)}
_EVALUATION = {"top1", "top5", "val_loss", "val_images"}  # a row has all of them or none
_SHARES = {"top1", "top5", "balanced", "majority", "ema_top1", "ema_top5"}
_MAY_BE_NAN = {"loss", "grad_norm", "val_loss"}
_NUMBERS = {
    *_MEANS, *_EVALUATION, *_SHARES, "epoch", "epochs", "step", "resolution", "bad_steps", "bad_samples", "wall", "at",
}  # fmt: skip
_LARGEST = 1e11  # of what is counted or timed; seconds since 1970 are 2e9
_MOST_BYTES = 2**30  # of a file; a log of a million rows has 0.4 GB


def is_row(row: object) -> bool:
    """Whether this is what `RunLog` writes: the fields of its kind are there and hold what their names say."""
    if not isinstance(row, dict) or not all(_is_text(row.get(name, "")) for name in ("kind", "stage", "message")):
        return False
    required = _REQUIRED.get(row.get("kind"))
    if required is None or not all(name in row for name in ("stage", "epoch", "step", *required)):
        return False
    if 0 < len(_EVALUATION & row.keys()) < len(_EVALUATION):
        return False
    counts = (row["epoch"], row["step"])
    return all(type(count) is int for count in counts) and all(
        _is_number(name, row[name]) for name in _NUMBERS & row.keys()
    )


def _is_number(name, value):
    if type(value) is int:
        return 0 <= value <= (1 if name in _SHARES else _LARGEST)
    if type(value) is not float:
        return False
    return name in _MAY_BE_NAN or (math.isfinite(value) and 0 <= value <= (1 if name in _SHARES else _LARGEST))


def _is_text(text):
    """JSON may also hold half of a character (a surrogate), which no file can be written with."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def scan_rows(path: Path) -> tuple[list[dict], int]:
    """The rows of a log, none where there is no file, and how many lines are no rows. A last line that a kill cut
    short is not counted: that is no damage."""
    *lines, rest = _content(path).split(b"\n")
    found = [_parsed(line) for line in lines if line.strip()]
    rows = [row for row in found if is_row(row)]
    last = _parsed(rest)
    return rows + [last] * is_row(last), len(found) - len(rows)


def read_rows(path: Path) -> list[dict]:
    """The rows of a log; what is no row is left out."""
    return scan_rows(path)[0]


def read_json(path: Path) -> object:
    """The content of a JSON file; None where there is no file, or it holds no JSON."""
    try:
        return _parsed(_content(path))
    except UserError:
        return None


def _content(path):
    return read_regular(path, _MOST_BYTES) if path.exists() else b""


def _parsed(text: bytes):
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested beyond all sense
        return None


def write_json(path: Path, content: object, *, indent: int | None = None) -> None:
    """Writes a JSON file, whole or not at all."""
    text = json.dumps(content, indent=indent) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class RowWriter:
    """Appends rows to a log that begins anew with the rows `kept`."""

    def __init__(self, path: Path, kept: list[dict]):
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self.file = path.open("ab", buffering=0)  # a row is in the file before the run goes on
        self.unwritten = b""

    def write(self, row: dict) -> None:
        """Appends one row. Where the disk is full it is kept, and tried again with the next one."""
        self.unwritten += json.dumps(row).encode() + b"\n"
        with suppress(OSError):
            self.unwritten = self.unwritten[self.file.write(self.unwritten) :]

    def close(self) -> None:
        """Closes the file; `unwritten` is what the disk did not take."""
        self.file.close()
