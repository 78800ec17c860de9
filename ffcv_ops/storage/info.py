"""What is said of a data set, for those who need no reader: importing this brings neither FFCV nor torch."""

import glob
import os
from pathlib import Path
from typing import NamedTuple

MOST_CLASSES = 10**6  # a head of more would take gigabytes; the largest public data sets have 21,843


class DatasetInfo(NamedTuple):
    """A checked data set: its path, number of samples and classes, class names where a sidecar has them, and its image
    fields from the largest to the smallest: ("image",) or a pyramid, ("image", "image_256", "image_160").

    fingerprint: of its content; "" for a data set that is not here. empty: classes without samples. checksums: whether
    each image is held against one."""

    path: Path
    samples: int
    classes: int
    class_names: tuple[str, ...] | None
    levels: tuple[str, ...] = ("image",)
    fingerprint: str = ""
    empty: int = 0
    checksums: bool = True


def exists(path: Path | str) -> bool:
    """Whether there is such a file or, with a `*` in its name, one that matches."""
    return bool(glob.glob(str(path))) if "*" in str(path) else os.path.exists(path)
