"""The order of an epoch: which image is shown when, as sample ids, and which part of each batch a rank takes.

Everything is a function of (seed, epoch, number of samples, repeats, batch, chunk). The number of ranks only cuts the
same global batches, so step k sees the same images on one GPU and on sixty-four.
"""

from typing import NamedTuple

import numpy as np

from ffcv_ops import rng
from ffcv_ops.compiled import kernel
from ffcv_ops.rng import RandomKey

_ROUND = 256  # repeated augmentation keeps a multiple of 256 samples (official code, samplers.py)


@kernel
def _sort_keys(seed, epoch, n, stream):
    keys = np.empty(n, np.uint64)
    for i in range(n):
        keys[i] = rng.bits(RandomKey(seed, epoch * n + i), stream)
    return keys


class PageWindows(NamedTuple):
    """Shuffling in parts, for files larger than memory: at any time only `at_once` pages of the file are needed."""

    page_of: np.ndarray  # each sample's page in the file, integers [num_samples]
    at_once: int


def shuffled(num_samples: int, *, seed: int, epoch: int, windows: PageWindows | None = None) -> np.ndarray:
    """A permutation of 0..num_samples-1 (int64): the images sorted by a hash of (seed, epoch, image).

    With `windows` the pages are shuffled and cut into windows of `at_once`, and only images of one window are shuffled
    among each other: all ranks walk through the same windows at the same time.
    """
    keys = _sort_keys(seed, epoch, num_samples, rng.ORDER)
    if windows is None:
        return np.argsort(keys, kind="stable")
    pages, page_number = np.unique(windows.page_of, return_inverse=True)
    place = np.empty(len(pages), np.int64)
    place[np.argsort(_sort_keys(seed, epoch, len(pages), rng.PAGES), kind="stable")] = np.arange(len(pages))
    return np.lexsort((keys, place[page_number] // windows.at_once))


def epoch_length(num_samples: int, *, repeats: int) -> int:
    """Samples of a training epoch: all images, or with repeats a multiple of 256 where there are that many."""
    return num_samples if repeats == 1 else num_samples // _ROUND * _ROUND or num_samples


def balanced(labels: np.ndarray, count: int, *, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images in random order, of each class equally many, or one more; and which copy of its image each is: a
    class's images come in turn, so that small classes are shown several times. int64 (count,) each."""
    order = shuffled(len(labels), seed=seed, epoch=epoch)
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, sizes = np.unique(labels, return_counts=True)
    turn, number = np.divmod(np.arange(count), len(sizes))
    images = by_class[(np.cumsum(sizes) - sizes)[number] + turn % sizes[number]]
    place = np.argsort(_sort_keys(seed, epoch, count, rng.BALANCED), kind="stable")
    return images[place], (turn // sizes[number])[place]


def epoch_sample_ids(
    num_samples: int,
    *,
    seed: int,
    epoch: int,
    repeats: int,
    windows: PageWindows | None = None,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """All sample ids of a training epoch in the order of the official samplers.

    With repeats > 1 this is repeated augmentation: every image of the shuffle `repeats` times in a row, cut after
    about num_samples samples (rounded down to a multiple of 256, where there are that many). An epoch then shows
    about 1 / repeats of the images. labels: every image's, for an epoch that is `balanced`.
    """
    length = epoch_length(num_samples, repeats=repeats)
    shown, copies, most = -(-length // repeats), 0, 1
    if labels is None:
        order = shuffled(num_samples, seed=seed, epoch=epoch, windows=windows)[:shown]
    else:
        order, copies = balanced(labels, shown, seed=seed, epoch=epoch)
        copies, most = copies[:, None], shown  # more than any image has, so that ids are unique over the epochs
    view = (epoch * most + copies) * repeats + np.arange(repeats)
    return (view * num_samples + order[:, None]).reshape(-1)[:length]


def replacement(sample_id: int, *, seed: int, num_samples: int) -> int:
    """What is shown in place of a sample whose image is corrupt: any image, in the same epoch and copy. Follows from
    the sample id alone, so it is the same on any number of workers and ranks, and after a restart."""
    image = rng.uniform_int(RandomKey(seed, sample_id), rng.REPLACEMENT, num_samples)
    return int(sample_id - sample_id % num_samples + image)


def arrange(ids: np.ndarray, *, batch: int, chunk: int) -> np.ndarray:
    """Puts sample ids into the order in which the global batches hold them; incomplete last batch dropped.

    The official code runs batch / chunk processes; process c takes every (batch / chunk)-th sample and mixes the
    i-th of its batch with the i-th from the end. Here each batch is chunk after chunk, and a chunk is laid out as
    [0, C-1, 1, C-2, ...]: mixing partners are neighbors (p and p ^ 1), so every even slice of a batch, on whatever
    rank or in whatever micro-batch, holds whole pairs, and the result does not depend on the split.
    """
    steps = len(ids) // batch
    by_chunk = ids[: steps * batch].reshape(steps, chunk, batch // chunk).transpose(0, 2, 1)
    paired = np.empty_like(by_chunk)
    paired[..., 0::2] = by_chunk[..., : (chunk + 1) // 2]
    paired[..., 1::2] = by_chunk[..., : (chunk - 1) // 2 : -1]
    return paired.reshape(-1)


def rank_share(ids: np.ndarray, *, batch: int, rank: int, world: int) -> np.ndarray:
    """Rank `rank` of `world`'s contiguous share of each global batch of `batch` samples."""
    return ids.reshape(-1, world, batch // world)[:, rank].reshape(-1)


def evaluation_share(num_samples: int, *, rank: int, world: int) -> np.ndarray:
    """The images that a rank evaluates: contiguous parts that cover every image exactly once (possibly none)."""
    return np.arange(num_samples * rank // world, num_samples * (rank + 1) // world)
