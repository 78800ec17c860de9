"""A data set's fingerprint: the same for the same content wherever it lies, another for any other content."""

import shutil

import numpy as np
import pytest
import xxhash
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter

from ffcv_ops.storage import fingerprint as fingerprints
from ffcv_ops.storage.index import column, describe, open_index


def write(path, images, labels):
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(list(zip(images, labels, strict=True)))
    return path


@pytest.fixture(scope="module")
def images(tiles):
    return [tile.copy() for tile in tiles[:12]]


def with_checksums(path):
    """Writes the sidecar of checksums that our own writer leaves, XXH64 of each stored image in the file's order."""
    index, data = open_index(path), path.read_bytes()
    places = zip(index.places.tolist(), index.sizes.tolist(), strict=True)
    sums = np.array([xxhash.xxh64_intdigest(data[place : place + size]) for place, size in places], np.uint64)
    return index._replace(checksums=sums)


def test_it_is_the_contents(tmp_path, images):
    labels = [k % 3 for k in range(12)]
    path = write(tmp_path / "a.beton", images, labels)
    (tmp_path / "elsewhere").mkdir()
    copied = shutil.copy(path, tmp_path / "elsewhere" / "b.beton")
    found = describe(path).fingerprint
    assert len(found) == 16
    assert describe(copied).fingerprint == found
    other_labels = write(tmp_path / "labels.beton", images, [*labels[:-1], 0])
    changed = [image.copy() for image in images]
    changed[7][0, 0, 0] ^= 1
    one_pixel = write(tmp_path / "pixel.beton", changed, labels)
    order = write(tmp_path / "order.beton", images[::-1], labels)
    different = [found, *(describe(file).fingerprint for file in (other_labels, one_pixel, order))]
    assert len(set(different)) == 4


@pytest.mark.parametrize("most", [fingerprints.ALL_BYTES, 0], ids=["small", "large"])
def test_any_bit_of_any_image_counts(tmp_path, images, monkeypatch, most):
    """Of a large data set without checksums, of the images that are looked at: here 6 of 12."""
    monkeypatch.setattr(fingerprints, "ALL_BYTES", most)
    monkeypatch.setattr(fingerprints, "SAMPLED", 6)
    changed = [image.copy() for image in images]
    changed[7][-1, -1, -1] ^= 1
    found = {}
    for name, content in (("a", images), ("b", changed)):
        path = write(tmp_path / f"{name}.beton", content, [0] * 12)
        for index in (open_index(path), with_checksums(path)):
            images_at = column(index, "image")["data_ptr"]
            found[name, index.checksums is None] = fingerprints.fingerprint(index, column(index, "label"), images_at)
    assert found["a", False] != found["b", False]
    assert (found["a", True] != found["b", True]) == (most > 0)
