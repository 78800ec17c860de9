"""What a data set holds, checked before anything is trained on it.

Stock FFCV opens a truncated or foreign file and then crashes, hangs or hands out wrong pixels; `opened` reads the same
header, fields, metadata and allocation table and refuses a file in which they contradict each other, the file's length
or what was written beside it. `path` is a .beton, or a pattern of shards: data/in21k_train-*.beton.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffcv_ops import index
from ffcv_ops.errors import UserError
from ffcv_ops.index import Index, column, levels_of

MOST_PIXELS = 100_000_000  # of one image, as in a conversion; a thread that decodes takes four bytes for each
_AT_ONCE = 1 << 20  # samples; bounds the memory of a check


class DatasetInfo(NamedTuple):
    """A checked data set: its path, number of samples and classes, class names where a sidecar has them, and its image
    fields from the largest to the smallest: ("image",) or a pyramid, ("image", "image_256", "image_160")."""

    path: Path
    samples: int
    classes: int
    class_names: tuple[str, ...] | None
    levels: tuple[str, ...] = ("image",)


def describe(path: Path | str) -> DatasetInfo:
    """What a .beton, or the shards that match a pattern, hold. The image fields are `image` and perhaps smaller levels
    of it, the label is `label`. Raises UserError with one clear line."""
    known = open_index(path)
    classes = max(int(column(known, "label").max()) + 1, len(known.class_names or ()))
    return DatasetInfo(known.path, len(known.metadata), classes, known.class_names, levels_of(known))


def open_index(path: Path | str) -> Index:
    """The index of a data set, after checking that every image lies inside its file, in a recorded region of a
    plausible size, that smaller levels are smaller pictures of the same shape, and that no label is negative."""
    known = index.read(path)
    for begin in range(0, len(known.metadata), _AT_ONCE):
        bad = _bad(known, slice(begin, begin + _AT_ONCE))
        if bad.any():
            first = begin + int(np.argmax(bad))
            count = sum(int(_bad(known, slice(k, k + _AT_ONCE)).sum()) for k in range(0, len(known.metadata), _AT_ONCE))
            raise UserError(
                f"{path}: {count} of {len(known.metadata)} entries are damaged, the first is sample {first}"
                f" {index.source_of(known, first)}; write or copy the file again"
            )
    return known


def _bad(known: Index, part: slice) -> np.ndarray:
    """Which of some samples are damaged."""
    bad = column(known, "label")[part] < 0
    full = larger = column(known, "image")[part]
    for name in levels_of(known):
        image = column(known, name)[part]
        bad |= _damaged(image, known) | _not_a_level(image, larger, full)
        larger = image
    return bad


def _damaged(image: np.ndarray, known: Index) -> np.ndarray:
    """Which entries do not point at a stored image inside of its file, or at one of an impossible size.

    The index says where the data of a file end: nothing may reach into the allocation table."""
    found = np.minimum(np.searchsorted(known.places, image["data_ptr"]), len(known.places) - 1)
    size, place = known.sizes[found].astype(np.int64), known.places[found]
    starts = np.array([file.start for file in known.files], np.uint64)
    ends = np.array([file.start + file.data_end for file in known.files], np.uint64)
    end = ends[np.maximum(np.searchsorted(starts, place, side="right"), 1) - 1]
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    return (
        (place != image["data_ptr"])
        | (size == 0)
        | (place > end)
        | (size.astype(np.uint64) > end - np.minimum(place, end))
        | (height == 0)
        | (width == 0)
        | (height * width > MOST_PIXELS)
        | (image["mode"] > 1)
        | ((image["mode"] == 1) & (size != 3 * height * width))
    )


def _not_a_level(image: np.ndarray, larger: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Which entries exceed those of the level before, or are no full image reduced in proportion: no scale brings both
    of its sides to within a pixel (both sizes were rounded from the original's)."""
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    full_height, full_width = full["height"].astype(np.int64), full["width"].astype(np.int64)
    return (
        (height > larger["height"])
        | (width > larger["width"])
        | ((height - 1) * full_width > (width + 1) * full_height)
        | ((width - 1) * full_height > (height + 1) * full_width)
    )
