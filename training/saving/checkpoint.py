"""Checkpoint files: whole or not there, checked when they are read, the last few of them kept.

    FOLDER/000001234.pt    after 1,234 steps: what torch.save makes of tensors and plain values, and one more line,
                           `xxh3_128 ` and the checksum of all before it

A file gets its name only when it is safely on the disk, so a kill at any moment leaves the ones before it. A newest
file that is damaged all the same (a bad disk, a cut copy) is put aside as x.damaged and the one before it is used.
Reading is with `weights_only=True`: nothing in a file is executed.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash

from ffcv_ops.errors import UserError
from ffcv_ops.files import open_regular, write_atomically

_MARK = b"\nxxh3_128 "
_DAMAGED = "its checksum is wrong: it is damaged or was not written to its end"
_LINE = len(_MARK) + 32 + 1  # the mark, hexadecimal digits and a line feed
_PIECE = 16 << 20  # bytes read at a time


def remove_strays(folder: Path) -> None:
    """Removes what killed writers left behind; none may be at work."""
    for stray in folder.glob("*.tmp"):
        stray.unlink()


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted((path for path in folder.glob("*.pt") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def write(folder: Path, step: int, content: dict, *, keep: int) -> None:
    """Writes the checkpoint of `step` and removes all but the `keep` newest. OSError where the disk does not take it;
    nothing is removed then."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{step:09d}.pt", lambda path: _write(path, content))
    for old in saved(folder)[:-keep]:
        old.unlink()


class _Hashing:
    """A file to write to that knows the checksum of what was written, and the error if there was one."""

    def __init__(self, file):
        self.file, self.digest, self.error = file, xxhash.xxh3_128(), None

    def write(self, piece):
        try:
            self.file.write(piece)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(piece)
        return len(piece)

    def flush(self):
        self.file.flush()


def _write(path, content):
    with path.open("wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(content, hashing)
        except RuntimeError:  # how torch ends after a write that failed
            if hashing.error is None:
                raise
            raise hashing.error from None
        file.write(_MARK + hashing.digest.hexdigest().encode() + b"\n")


def read(path: Path) -> dict:
    """The content of one checkpoint, on the CPU. ValueError, in one line, where the file is damaged or none of ours;
    UserError where the disk or the memory does not let it be read, which says nothing about the file."""
    try:
        with open_regular(path) as file:
            _check(file)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # torch.load raises many kinds; each means that the file cannot be used
        if "DefaultCPUAllocator" in str(error):  # a RuntimeError, how torch says that there is too little memory
            raise _unreadable(path, "too little memory") from error
        reason = "".join(filter(str.isprintable, str(error).partition("\n")[0]))  # torch's has escape codes
        raise ValueError(reason[:200]) from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content


def _unreadable(path, why):
    why = getattr(why, "strerror", None) or str(why) or "too little memory"
    return UserError(f"{path} cannot be read now ({why}); nothing is changed: once it can, the same command goes on")


def _check(file):
    """ValueError unless the file ends with the checksum of what is before it."""
    digest, left = xxhash.xxh3_128(), file.seek(0, os.SEEK_END) - _LINE
    if left < 0:
        raise ValueError(f"it has {left + _LINE} bytes")
    file.seek(left)
    if not file.read().startswith(_MARK):  # before all of it is read, which may be a terabyte of holes
        raise ValueError(_DAMAGED)
    file.seek(0)
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise ValueError("it became shorter while it was read")
        digest.update(piece)
        left -= len(piece)
    if file.read() != _MARK + digest.hexdigest().encode() + b"\n":
        raise ValueError(_DAMAGED)


def newest(folder: Path, say: Callable[[str], object]) -> tuple[Path, dict] | None:
    """Path and content of the newest checkpoint that is whole, or None where there is none at all; `say` is told of
    damaged ones. UserError where all of them are, or one cannot be read."""
    damaged = []
    for path in reversed(saved(folder)):
        try:
            content = read(path)
        except ValueError as error:
            damaged.append((path, error))
            continue
        for bad, reason in damaged:
            say(f"{bad} cannot be used ({reason}); put aside as .damaged, {path.name} is used instead")
            bad.replace(bad.with_suffix(".damaged"))
        return path, content
    if damaged:
        path, reason = damaged[0]
        one = f"{path} is no checkpoint of ours or damaged ({reason}), and no older one is whole"
        raise UserError(f"{one}; delete {folder} to start again")
    return None
