"""How many images the classes have, in a line; and a warning where one class has most of them."""

from collections.abc import Iterator

import numpy as np

from conversion.sources import Source
from ffcv_ops.errors import one_line

TWICE = 2  # a largest class of half of all images is worth a warning where it has so many times those of the next


def class_sizes(source: Source) -> Iterator[str]:
    """Lines about the training images of a source."""
    if "train" not in source.splits:
        return
    counts = np.bincount(source.splits["train"].labels, minlength=len(source.classes))
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    smallest, largest = (f"{counts[k]:,} ({one_line(source.classes[k], 40)})" for k in (order[0], order[-1]))
    median = np.median(counts[order])
    yield f"train: {len(order):,} classes, smallest {smallest}, median {median:,.0f}, largest {largest}"
    if len(order) == 1:
        yield f"warning: all of train is one class, {one_line(source.classes[order[0]], 40)}; nothing can be learned"
    elif 2 * counts.max() > counts.sum() and counts[order[-1]] > TWICE * counts[order[-2]]:
        share, name = counts.max() / counts.sum(), one_line(source.classes[order[-1]], 40)
        yield (
            f"warning: {share:.0%} of train is {name}; docs/finetuning.md, Classes of different size, says how to weigh"
            " the classes or to show them equally often"
        )
