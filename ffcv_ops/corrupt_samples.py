"""What becomes of a sample that cannot be shown: the run stops and names it, or another is shown and counted.

No batch ever holds other pixels than its draw ids say. FFCV's thread decodes ahead, so replacements are counted twice:
when they are made, against the limit, and when their batch is given out, for the log.
"""

import math
from collections import Counter

import numpy as np

from ffcv_ops import order
from ffcv_ops.decoders import FAULTS, SampleError
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import Index
from ffcv_ops.storage.sources import named, source_of

MOST_STAND_INS = 64  # bad ones in a row, for one showing: where so many are bad, most of the file is


class CorruptSamples:
    """The policy of one loader, and its counts of the epoch: `replaced` showings so far, `times` each sample was bad.

    limit: None stops at the first bad sample; else the share of an epoch's showings in this process that may be
    replaced, rounded up.
    """

    def __init__(self, index: Index, *, seed: int, limit: float | None):
        self.index, self.seed, self.limit = index, seed, limit
        self.begin(0)

    def begin(self, showings: int) -> None:
        """A new epoch of so many showings."""
        self.showings, self.made, self.replaced = showings, 0, 0
        self.times: Counter[int] = Counter()
        self.in_batch: dict[int, Counter[int]] = {}  # of each batch: how often each of its places was replaced

    def seen(self, batch: int) -> None:
        """Batch number `batch` of the epoch is given out."""
        self.replaced += len(self.in_batch.pop(batch, ()))

    def replace(self, batch: int, draws: np.ndarray, error: SampleError) -> np.ndarray:
        """The draw ids with which to decode a batch instead. Raises UserError where the policy says stop."""
        total = len(self.index.metadata)
        samples = draws[error.places] % total
        if self.limit is None:
            raise UserError(
                f"{self.index.path}: {self.name(samples[0])} {FAULTS[int(error.faults[0])]};"
                " write the file again, or leave that image out"
            ) from error
        self.times.update(samples.tolist())
        places = self.in_batch.setdefault(batch, Counter())
        self.made -= len(places)
        places.update(error.places.tolist())
        self.made += len(places)  # a stand-in that is bad too is no further showing
        if self.made > math.ceil(self.limit * self.showings):
            raise UserError(
                f"{self.index.path}: {self.made} of an epoch's {self.showings} showings had to be replaced,"
                f" more than data.bad_limit {self.limit:g} allows: {self.worst()}; write the file again"
            ) from error
        if max(places.values()) > MOST_STAND_INS:
            raise UserError(
                f"{self.index.path}: {MOST_STAND_INS} images that were to stand in for a bad one are bad too:"
                f" {self.worst()}; write the file again"
            ) from error
        draws = draws.copy()
        draws[error.places] = [
            order.replacement(draw, seed=self.seed, num_samples=total) for draw in draws[error.places].tolist()
        ]
        return draws

    def worst(self, most: int = 5) -> str:
        """The samples that were bad most often, by name."""
        named = [f"{self.name(sample)} ({times}x)" for sample, times in self.times.most_common(most)]
        rest = len(self.times) - len(named)
        return ", ".join(named) + (f" and {rest} more" if rest else "")

    def name(self, sample: int) -> str:
        return named(sample, source_of(self.index, int(sample)))
