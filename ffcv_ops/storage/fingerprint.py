"""A short hash of what a data set holds, the same wherever its files lie and however many they are."""

import os

import numpy as np
import xxhash

SAMPLED, SAMPLED_BYTES = 256, 4096  # of a data set without checksums: images that are looked at, and bytes of each


def fingerprint(index, labels: np.ndarray, images: np.ndarray) -> str:
    """16 hexadecimal digits of labels, class names and images, in the samples' order. Images count by their checksums;
    in files that have none, by their sizes and by the first bytes of 256 of them.

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
        for sample in np.unique(np.linspace(0, len(images) - 1, SAMPLED).astype(int)):
            digest.update(_first_bytes(index, int(images[sample]), int(index.sizes[stored[sample]])))
    return digest.hexdigest()


def _first_bytes(index, place, size):
    file = max((file for file in index.files if file.start <= place), key=lambda file: file.start)
    with open(file.path, "rb") as opened:
        return os.pread(opened.fileno(), min(size, SAMPLED_BYTES), place - file.start)
