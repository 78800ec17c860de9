"""What becomes of a sample that cannot be shown: the run stops and names it, or another is shown and counted.

No batch ever holds other pixels than its sample ids say. FFCV's thread decodes ahead, so replacements are counted
twice: when they are made, against the limit, and when their batch is given out, for the log.
"""

import math
from collections import Counter

import numpy as np

from ffcv_ops import order
from ffcv_ops.decoders import SampleError
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import Index
from ffcv_ops.storage.sources import named, source_of
from ffcv_ops.stored_images import FAULTS

MOST_REPLACEMENTS = 64  # corrupt ones in a row, for one place: where so many are corrupt, most of the file is


class CorruptSamples:
    """The policy of one loader, and its counts of the epoch: samples `replaced` so far, `times` each was corrupt.

    limit: None stops at the first corrupt sample; else the share of an epoch's samples in this process that may be
    replaced, rounded up.
    """

    def __init__(self, index: Index, *, seed: int, limit: float | None):
        self.index, self.seed, self.limit = index, seed, limit
        self.begin(0)

    def begin(self, length: int) -> None:
        """A new epoch of so many samples."""
        self.length, self.decided, self.replaced = length, 0, 0
        self.times: Counter[int] = Counter()
        self.in_batch: dict[int, Counter[int]] = {}  # of each batch: how often each of its places was replaced

    def yielded(self, batch: int) -> None:
        """Batch number `batch` of the epoch is given out."""
        self.replaced += len(self.in_batch.pop(batch, ()))

    def replace(self, batch: int, sample_ids: np.ndarray, error: SampleError) -> np.ndarray:
        """The sample ids with which to decode a batch instead. Raises UserError where the policy says stop."""
        total = len(self.index.metadata)
        samples = sample_ids[error.places] % total
        if self.limit is None:
            raise UserError(
                f"{self.index.path}: {self.name(samples[0])} {FAULTS[int(error.faults[0])]};"
                " write the file again, or leave that image out"
            ) from error
        self.times.update(samples.tolist())
        places = self.in_batch.setdefault(batch, Counter())
        self.decided -= len(places)
        places.update(error.places.tolist())
        self.decided += len(places)  # a replacement that is corrupt too is no further one
        if self.decided > math.ceil(self.limit * self.length):
            raise UserError(
                f"{self.index.path}: {self.decided} of an epoch's {self.length} samples had to be replaced,"
                f" more than data.bad_limit {self.limit:g} allows: {self.most_frequent()}; write the file again"
            ) from error
        if max(places.values()) > MOST_REPLACEMENTS:
            raise UserError(
                f"{self.index.path}: {MOST_REPLACEMENTS} images that were to replace a corrupt one are corrupt too:"
                f" {self.most_frequent()}; write the file again"
            ) from error
        sample_ids = sample_ids.copy()
        sample_ids[error.places] = [
            order.replacement(sample_id, seed=self.seed, num_samples=total)
            for sample_id in sample_ids[error.places].tolist()
        ]
        return sample_ids

    def most_frequent(self) -> str:
        """The samples that were corrupt most often, by name."""
        found = [f"{self.name(sample)} ({times}x)" for sample, times in self.times.most_common(5)]
        rest = len(self.times) - len(found)
        return ", ".join(found) + (f" and {rest} more" if rest else "")

    def name(self, sample: int) -> str:
        return named(sample, source_of(self.index, int(sample)))
