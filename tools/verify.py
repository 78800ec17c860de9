"""Is a data set sound? Every stored image is read, held against its checksum and decoded, every label looked up.

    python write_datasets.py --verify FILE      # a .beton, or the pattern of its shards

A header or table that contradicts itself is a `UserError` at once. What is wrong with samples is printed, a line each.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from conversion.progress import progress
from ffcv_ops import decoders
from ffcv_ops.compiled import kernel
from ffcv_ops.storage.index import Index, column, levels_of, open_index
from ffcv_ops.storage.reading import Files
from ffcv_ops.storage.sources import named, sources_from

_AT_ONCE = 2048  # samples between two updates of the bar


def verify(path: Path | str, *, workers: int) -> int:
    """Prints each bad sample, with the file that it was made from, and a summary; returns how many are bad."""
    known, bad = open_index(path), 0
    sources = enumerate(sources_from(known, 0))  # bad samples come in their order
    with progress("verifying", len(known.metadata)) as advance:
        for sample, fault in faults(known, workers=workers, after=advance):
            source = next(source for number, source in sources if number == sample)
            print(f"{path}: {named(sample, source)}: {fault}")
            bad += 1
    held = "decode; there are no checksums" if known.checksums is None else "decode and have their checksums"
    said = f"{bad:,} of them bad" if bad else f"all {held}"
    sizes = f" at {len(levels_of(known))} sizes" if len(levels_of(known)) > 1 else ""
    print(f"{path}: {len(known.metadata):,} samples{sizes}, {said}")
    return bad


def faults(known: Index, *, workers: int, after=lambda count: None) -> Iterator[tuple[int, str]]:
    """Yields (sample, what is wrong with it) in the samples' order. Calls `after` with the number of samples that were
    checked since the last call."""
    names, labels = levels_of(known), column(known, "label")
    with ThreadPoolExecutor(workers) as threads, Files(known).schedule_epoch([]) as files:
        for begin in range(0, len(known.metadata), _AT_ONCE):
            found = _check(known, names, slice(begin, begin + _AT_ONCE), files, threads, workers)
            files.check()
            for sample, levels in enumerate(found, begin):
                words = [f"{name} {decoders.FAULTS[int(f)]}" for name, f in zip(names, levels, strict=True) if f]
                if known.class_names is not None and labels[sample] >= len(known.class_names):
                    words.append(f"label {labels[sample]}, but there are {len(known.class_names)} classes")
                if words:
                    yield sample, ", ".join(words)
            after(len(found))


def _check(known, names, part, files, threads, workers) -> np.ndarray:
    """What is wrong with the images of some samples: decoders.OK, ... [samples, levels]."""
    stored = np.stack([column(known, name)[part] for name in names], axis=1)
    number = np.searchsorted(known.places, stored["data_ptr"])
    checked = known.checksums is not None
    checksums = known.checksums[number] if checked else np.zeros(number.shape, np.uint64)
    descriptors, places = files.locate(stored["data_ptr"])
    sizes, found = known.sizes[number].astype(np.int64), np.zeros(number.shape, np.uint8)
    columns = [stored[name].astype(np.int64) for name in ("mode", "height", "width")]
    work = (np.zeros(1, np.int64), descriptors, places, sizes, checksums, checked, *columns, found)
    for thread in [threads.submit(_check_some, *work) for _ in range(workers)]:
        thread.result()
    return found


@kernel
def _check_some(ticket, files, places, sizes, checksums, checked, modes, heights, widths, found):
    """What one thread does: samples by ticket, all their levels; what several levels share, once."""
    decoder = jpeg.open_decoder()
    buffer = np.empty(sizes.max(), np.uint8)
    pixels = np.empty(((heights + 16) * widths).max() + 16, np.uint32)
    i = decoders.next_ticket(ticket)
    while i < len(found):
        for level in range(found.shape[1]):
            if level == 0 or places[i, level] != places[i, level - 1]:
                address, fault = decoders.fetch(
                    files[i, level], places[i, level], sizes[i, level], checksums[i, level], checked, buffer
                )
                if fault == decoders.OK and modes[i, level] == decoders.JPG:
                    height, width = heights[i, level], widths[i, level]
                    fault = _decode(decoder, address, sizes[i, level], height, width, pixels)
                found[i, level] = fault
        i = decoders.next_ticket(ticket)
    jpeg.close_decoder(decoder)


@kernel
def _decode(decoder, address, size, height, width, pixels):
    """Decodes a whole JPEG to `pixels`; returns OK or CORRUPT."""
    status = jpeg.begin(decoder, address, size, height, width, jpeg.WHOLE, False, (0, height), (0, width), pixels)
    row = 0
    while row < height and status == jpeg.OK:
        count = min(jpeg.ROWS_AT_ONCE, height - row)
        status = jpeg.rows(decoder, pixels, width, count)
        row += count
    return jpeg.end(decoder) if status == jpeg.OK else status
