"""A short hash of what a data set holds, the same wherever its files lie and however many they are."""

import contextlib
import os

import numpy as np
import xxhash

from ffcv_ops.errors import reading
from ffcv_ops.files import open_regular

ALL_BYTES = 2**28  # of a data set without checksums: up to so many are all read, which takes a tenth of a second
SAMPLED = 256  # images of a larger one


def fingerprint(index, labels: np.ndarray, images: np.ndarray) -> str:
    """16 hexadecimal digits of labels, class names and images, in the samples' order. Images count by their checksums;
    in files that have none, by their sizes and bytes, of which no more than those of SAMPLED images are read where all
    would be more than ALL_BYTES.

    index: an `Index`. labels: integers (samples,). images: where each sample's image begins, uint64 (samples,).
    """
    digest = xxhash.xxh3_64()
    digest.update(np.ascontiguousarray(labels).tobytes())
    digest.update("\0".join(index.class_names or ()).encode("utf-8", "backslashreplace"))
    stored = np.searchsorted(index.places, images)
    digest.update(index.sizes[stored].tobytes())
    if index.checksums is not None:
        digest.update(index.checksums[stored].tobytes())
    else:
        if index.sizes[stored].sum(dtype=np.int64) > ALL_BYTES:
            stored = stored[np.unique(np.linspace(0, len(stored) - 1, SAMPLED).astype(int))]
        for image in _images(index, stored):
            digest.update(image)
    return digest.hexdigest()


def _images(index, stored):
    """The bytes of stored images, by their numbers."""
    starts = np.array([file.start for file in index.files], np.uint64)
    files = np.searchsorted(starts, index.places[stored], side="right") - 1
    inside = index.places[stored] - starts[files]
    with contextlib.ExitStack() as opened, reading(index.path):
        descriptors = [opened.enter_context(open_regular(file.path)).fileno() for file in index.files]
        for file, place, size in zip(files.tolist(), inside.tolist(), index.sizes[stored].tolist(), strict=True):
            yield os.pread(descriptors[file], size, place)
