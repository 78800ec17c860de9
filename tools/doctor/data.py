"""Data sets: whether they open, how fast their disk is, and whether memory holds them."""

import glob
import struct
from pathlib import Path

from config.text import format_bytes
from ffcv_ops import host
from tools.doctor.findings import FAULT, OK, WARNING, Finding

IMAGES_PER_CORE = 1000  # of our loader, about (docs/performance.md)
HEADER = struct.Struct("<HHIQQ")  # of a .beton: version, fields, page size, samples, place of the table


def _samples(path):
    """Number of samples by the header, without ffcv."""
    with path.open("rb") as file:
        return HEADER.unpack(file.read(HEADER.size))[3]


def paths_of(name):
    """The files of a data set: one, or those that match a pattern."""
    found = map(Path, sorted(glob.glob(name)) if "*" in name else [name])
    return [path for path in found if path.is_file()]


def _written_by(name):
    """The command that writes a file of this name, or shards that match this pattern."""
    out, split, _ = name.rpartition("_")
    if out == "data/photos":
        return "python write_datasets.py"
    return "python write_datasets.py --data.source=FOLDER" + (f" --data.out={out}" if split else "")


def beton(name, paths, known, ffcv_works):
    """A .beton, or the shards of a pattern as one: whether it opens, and how fast the disk of its largest file is."""
    if not paths:
        yield Finding(name, FAULT, "no such file", _written_by(name))
        return
    if "refused" in known:
        yield Finding(name, FAULT, known["refused"], "write or copy it again")
        return
    size, samples = sum(path.stat().st_size for path in paths), known.get("samples") or sum(map(_samples, paths))
    found = f"{samples:,} images, {format_bytes(size)}"
    found += f", {known['classes']:,} classes" if "classes" in known else ""
    if "error" in known and ffcv_works:
        yield Finding(name, WARNING, f"{found}; {known['error']:.200}", "python -m pytest tests/ffcv_ops")
    else:
        yield Finding(name, OK, found)
    largest = max(paths, key=lambda path: path.stat().st_size)
    speed, direct = host.read_speed(largest)
    rate, wanted = speed / (size / samples), IMAGES_PER_CORE * host.usable_cores()
    found = f"{host.file_system_of(largest)}, {speed / 2**20:,.0f} MiB/s, {rate:,.0f} images/s"
    found += "" if direct else " (through the page cache)"
    slow = rate < wanted
    found += f"; the cores could take about {wanted:,}" if slow else ""
    fix = f"cp {name} to a local SSD; where it is larger than memory: --data.shuffle_pages=64 --data.cache=process"
    yield Finding("its disk", WARNING if slow else OK, found, fix)


def data_in_memory(paths):
    total, _, limit = host.memory()
    most, size = min(total, limit or total), sum(path.stat().st_size for path in paths)
    found = f"{format_bytes(size)} of files, {format_bytes(most)} of memory"
    if size < 0.8 * most:
        yield Finding("data and memory", OK, f"{found}: from the second epoch on the page cache holds all")
    else:
        fix = "--data.shuffle_pages=64 --data.cache=process (reads in runs of pages; docs/data.md)"
        yield Finding("data and memory", WARNING, f"{found}: every epoch reads from the disk", fix)
