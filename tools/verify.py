"""Is a data set sound? Every stored image is read, held against its checksum and decoded, every label looked up.

    python write_datasets.py --verify FILE      # a .beton, or the pattern of its shards

A header or table that contradicts itself is a `UserError` at once. What is wrong with samples is printed, a line each.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from config.parser import part_of
from conversion.progress import progress
from ffcv_ops import stored_images
from ffcv_ops.compiled import kernel
from ffcv_ops.jpeg import decoder
from ffcv_ops.kernels.span import Span
from ffcv_ops.kernels.tickets import next_ticket
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


def faults(known: Index, *, workers: int, after: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """Yields (sample, what is wrong with it) in the samples' order. Calls `after` with the number of samples that were
    checked since the last call."""
    names, labels = levels_of(known), column(known, "label")
    with ThreadPoolExecutor(workers) as threads, Files(known).schedule_epoch([]) as files:
        for begin in range(0, len(known.metadata), _AT_ONCE):
            found = _check(known, names, slice(begin, begin + _AT_ONCE), files, threads, workers)
            files.check()
            for sample, levels in enumerate(found, begin):
                words = [f"{name} {stored_images.FAULTS[int(f)]}" for name, f in zip(names, levels, strict=True) if f]
                if known.class_names is not None and labels[sample] >= len(known.class_names):
                    words.append(f"label {labels[sample]}, but there are {len(known.class_names)} classes")
                if words:
                    yield sample, ", ".join(words)
            after(len(found))


def _check(known, names, part, files, threads, workers) -> np.ndarray:
    """What is wrong with the images of some samples: OK, CORRUPT, ... [samples, levels]."""
    table = stored_images.stored_images(known, [column(known, name) for name in names], part, files.locate)
    ticket, found = np.zeros(1, np.int64), np.zeros(table.shape, np.uint8)
    for thread in [threads.submit(_check_some, ticket, table, found) for _ in range(workers)]:
        thread.result()
    return found


@kernel
def _check_some(ticket, table, found):
    """What one thread does: samples by ticket, all their levels; what several levels share, once.

    ticket: int64 [1]. table: STORED_IMAGE [samples, levels]. found: uint8 [samples, levels].
    """
    handle = decoder.open_decoder()
    buffer = np.empty(table["size"].max(), np.uint8)
    pixels = np.empty((table["height"] * table["width"]).max(), np.uint32)
    i = next_ticket(ticket)
    while i < len(found):
        for level in range(found.shape[1]):
            image = table[i, level]
            if level == 0 or image.place != table[i, level - 1].place:
                address, fault = stored_images.fetch(image, buffer)
                if fault == stored_images.OK and image.mode == stored_images.JPG:
                    fault = _decode(handle, decoder.Jpeg(address, image.size, image.height, image.width), pixels)
                found[i, level] = fault
        i = next_ticket(ticket)
    decoder.close_decoder(handle)


@kernel
def _decode(handle, jpeg, pixels):
    """Decodes a whole JPEG to `pixels` (uint32, all of them); returns OK or CORRUPT."""
    everything = decoder.Region(decoder.UNSCALED, False, Span(0, jpeg.height), Span(0, jpeg.width))
    status = decoder.begin(handle, jpeg, everything, pixels)
    row = 0
    while row < jpeg.height and status == decoder.OK:
        count = min(decoder.ROWS_AT_ONCE, jpeg.height - row)
        status = decoder.rows(handle, pixels, jpeg.width, count)
        row += count
    return decoder.end(handle) if status == decoder.OK else status


if __name__ == "__main__":
    part_of("python write_datasets.py --verify FILE")
