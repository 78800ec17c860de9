"""The writers that bench.write compares. Little is imported here, since worker processes import it too.

python -m bench.writers ours "as they are, 500 px" IMAGES OUT.beton 2      # prints seconds
"""

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import NamedTuple

QUALITY = 90


class Task(NamedTuple):
    """What is asked of both writers, and our setting in it."""

    max_side: int
    passthrough: bool


TASKS = {
    "encoded again, 500 px": Task(500, passthrough=False),
    "encoded again, 256 px": Task(256, passthrough=False),
    "as they are, 500 px": Task(500, passthrough=True),
}


def ours(images: Path, out: Path, task: Task, workers: int) -> float:
    """Converts images/train and returns the seconds that it took."""
    from conversion.convert import WriteOptions, convert
    from conversion.encode import ImageConfig
    from conversion.sources import image_folder

    source = image_folder(str(images))
    image = ImageConfig(max_side=task.max_side, quality=QUALITY, passthrough=task.passthrough)
    began = time.perf_counter()
    convert(source, "train", out, image, WriteOptions(2**23, workers=workers))
    return time.perf_counter() - began


def stock(images: Path, out: Path, task: Task, workers: int) -> float:
    return by_ffcv(images / "train", out, workers, write_mode="jpg", max_resolution=task.max_side)


def by_ffcv(folder: Path, out: Path, workers: int, **settings) -> float:
    """Converts a folder of classes with FFCV's own writer, and returns the seconds that it took."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    image, dataset = RGBImageField(jpeg_quality=QUALITY, **settings), ImageFolder(str(folder))
    began = time.perf_counter()
    writer = DatasetWriter(str(out), {"image": image, "label": IntField()}, num_workers=workers)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        writer.from_indexed_dataset(dataset)
    return time.perf_counter() - began


WRITERS = {"ours": ours, "ffcv": stock}


if __name__ == "__main__":
    name, task, images, out, workers = sys.argv[1:]
    print(WRITERS[name](Path(images), Path(out), TASKS[task], int(workers)))
