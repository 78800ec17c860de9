"""One split of a source -> x.beton, with x.json, x.xxh64, x.files.txt and, when images were left out, x.skipped.txt.

Everything is written under temporary names and the .beton is read back. Only then do the files take their final names,
the .beton last: what has a final name is complete, and an older file stays until the new one takes its place.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from xxhash import xxh64_hexdigest

from conversion import beton
from conversion.encode import Refused
from conversion.progress import progress
from conversion.sources import Source
from conversion.workers import encoded
from ffcv_ops.errors import BadInput

SIDECAR_FORMAT = 2


def convert(
    source: Source,
    split_name: str,
    path: Path,
    encode: functools.partial,
    *,
    on_error: str,
    workers: int,
    page_size: int,
    images: Sequence[str] = beton.SINGLE,
) -> str:
    """Writes the split `split_name` of `source` to `path`. Returns a line that says what is there now.

    encode: turns an item, with `read` of the source, into `Encoded`, one for each field of `images`; its keywords are
    the settings in the sidecar.
    on_error: `stop` ends at the first item, in the split's order, that cannot be stored; `skip` leaves it out.
    """
    began = time.monotonic()
    split = source.splits[split_name]
    refused = {}  # number of the item -> reason
    samples = _samples(source, split_name, encode, refused, on_error=on_error, workers=workers, page_size=page_size)
    with _replacing(path) as new, contextlib.closing(samples):
        capacity = len(split.items)
        table, checksums = beton.write(new[".beton"], samples, capacity=capacity, page_size=page_size, images=images)
        if not len(table):
            raise BadInput(f"none of the {len(refused)} images of {split_name} can be stored, so {path} is not written")
        with progress(f"{split_name}, reading back", len(checksums)) as one_more:
            sha256 = beton.check(new[".beton"], table, checksums, classes=len(source.classes), after_each=one_more)
        size = new[".beton"].stat().st_size

        _write_lines(new[".files.txt"], (name for k, name in enumerate(split.names) if k not in refused))
        if refused:
            _write_lines(new[".skipped.txt"], (f"{split.names[k]}\t{reason}" for k, reason in refused.items()))
        new[".xxh64"].write_bytes(checksums.tobytes())
        _sync(new[".xxh64"])
        settings = {"on_error": on_error, "page_size": page_size, **encode.keywords}
        description = _describe(source, split_name, table, skipped=len(refused), settings=settings)
        file = {"beton": path.name, "shard": 0, "shards": 1, "bytes": size, "stored": beton.stored(new[".beton"])}
        file |= {"sha256": sha256, "index_xxh64": beton.index_checksum(new[".beton"])}
        file |= {"checksums_xxh64": xxh64_hexdigest(checksums.tobytes())}
        sidecar = {"format": SIDECAR_FORMAT, **file, **description}
        _write_lines(new[".json"], [json.dumps(sidecar, indent=2, ensure_ascii=False)])
    speed = len(split.items) / (time.monotonic() - began)
    left_out = f"; {len(refused):,} left out, see {_beside(path, '.skipped.txt')}" if refused else ""
    stored = f"{len(table):,} images of {len(source.classes):,} classes"
    return f"{path}: {stored}, {size / 1e6:,.1f} MB, {speed:,.0f} images/s{left_out}"


@contextlib.contextmanager
def _replacing(path: Path):
    """Gives {end: temporary path}. Afterwards what was written there takes its final name, and what was not leaves no
    older file under that name. When anything fails, the temporary files go and the older ones stay."""
    ends = (".files.txt", ".skipped.txt", ".xxh64", ".json", ".beton")
    temporary = {end: _beside(path, end + ".partial") for end in ends}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for remains in temporary.values():
            remains.unlink(missing_ok=True)
        yield temporary
        for end, file in temporary.items():
            if file.exists():
                os.replace(file, _beside(path, end))
            else:
                _beside(path, end).unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None
    finally:
        for file in temporary.values():
            with contextlib.suppress(OSError):
                file.unlink()


def _samples(source, split_name, encode, refused, *, on_error, workers, page_size):
    """Yields (a tuple of Encoded, label) of the items that can be stored and notes the others in `refused`."""
    split = source.splits[split_name]
    results = encoded(split.items, functools.partial(encode, read=source.read), workers=workers)
    with contextlib.closing(results), progress(split_name, len(split.items)) as one_more:
        for number, result in enumerate(results):
            if not isinstance(result, Refused):
                result = _fitting(result, page_size)
            if not isinstance(result, Refused):
                yield result, split.labels[number]
            elif on_error == "skip":
                refused[number] = result.reason
            else:
                file = os.path.join(source.origin, split.names[number])
                raise BadInput(f"{file}: {result.reason}; data.on_error=skip leaves such files out")
            one_more()


def _fitting(sample, page_size):
    """The sample, or `Refused` when one of its images is larger than a page."""
    largest = max(len(image.data) for image in sample)
    if largest <= page_size:
        return sample
    return Refused(
        f"takes {largest:,} bytes, more than a page of the .beton ({page_size:,});"
        " set image.max_side lower or image.mode=jpg"
    )


def _describe(source, split_name, table, *, skipped, settings):
    """The sidecar but for what identifies the file."""
    per_class = np.bincount(table["label"], minlength=len(source.classes)).tolist()
    sides = {side: [int(table["image"][side].min()), int(table["image"][side].max())] for side in ("height", "width")}
    return {
        "split": split_name,
        "samples": len(table),
        "skipped": skipped,
        "classes": list(source.classes),
        "samples_per_class": per_class,
        "smallest_and_largest": sides,
        "source": source.origin,
        "settings": settings,
        "layout": {"ffcv": beton.VERSION, "fields": list(table.dtype.names)},
        "pillow": PIL.__version__,
    }


def _beside(path: Path, end: str) -> Path:
    """x.beton, .json -> x.json"""
    return path.with_name(path.name.removesuffix(".beton") + end)


def _write_lines(path: Path, lines):
    """File names that are no UTF-8 keep their bytes."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path):
    """A file's content, or a folder's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
