"""FFCV's operation of a loader that reads images: a batch's sample ids -> uint8 pixels.

Each of the loader's threads takes the next sample until there is none (transform.py says what it does with it). All
randomness comes from the sample id, so the result does not depend on which thread took it.
"""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np

from ffcv_ops.stock import AllocationQuery, SimpleRGBImageDecoder
from ffcv_ops.storage.index import Index, column
from ffcv_ops.stored_images import stored_images
from ffcv_ops.transform import TransformParams, transform_samples


class SampleError(ValueError):
    """Stored images of a batch that cannot be shown: their places in the batch, and what is wrong with each."""

    def __init__(self, places: np.ndarray, faults: np.ndarray):
        super().__init__(places, faults)
        self.places, self.faults = places, faults


class ImageDecoder(SimpleRGBImageDecoder):
    """Decodes, crops, resamples, flips and augments as `params` says, to `resolution` x `resolution` pixels.

    The small function below gathers where the samples lie; the loop over samples is our own kernel, compiled once and
    kept on disk, in `workers` threads that Python starts: unlike Numba's, they serve several loaders at a time, and do
    not spin while they wait. `resolution` may be changed between epochs. For our `Loader` only, which calls `reads`:
    FFCV's own would compile this.
    """

    def __init__(self, *, params: TransformParams, resolution: int, seed: int, workers: int):
        super().__init__()
        self.params, self.resolution, self.seed, self.workers = params, resolution, seed, workers
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def reads(self, index: Index, levels: tuple[str, ...]) -> None:
        """Says where the images are described, and which of their levels may be decoded."""
        self.index, self.levels = index, [column(index, name) for name in levels]

    def of_another(self, index: Index, name: str) -> "ImageDecoder":
        """The same for the image field `name` of the same samples: with the same random numbers."""
        other = ImageDecoder(params=self.params, resolution=self.resolution, seed=self.seed, workers=self.workers)
        other.reads(index, (name,))
        return other

    def declare_state_and_memory(self, previous_state):
        shape, dtype = (self.resolution, self.resolution, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self):
        def decode(sample_ids, out, metadata, storage):
            def locate(places):
                return self.memory_read(places, storage)

            table = stored_images(self.index, self.levels, sample_ids % len(metadata), locate)
            ticket, faults = np.zeros(1, np.int64), np.zeros(len(sample_ids), np.uint8)
            work = (ticket, sample_ids, table, self.seed, self.params, out, faults)
            running = [self.threads.submit(transform_samples, *work) for _ in range(self.workers)]
            wait(running)  # all of them: what they write to is used again
            for thread in running:
                thread.result()
            if faults.any():
                raise SampleError(np.flatnonzero(faults), faults[faults > 0])
            return out[: len(sample_ids)]

        return decode
