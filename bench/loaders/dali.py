"""NVIDIA DALI's CPU pipeline. Batches: uint8 [n, size, size, 3].

Only the crop's region is decoded (the simple random crop takes a square as long as the short side, without the
paper's 4 reflected border pixels, which DALI cannot make cheaply). 3-Augment splits the batch by DALI's conditionals,
so that each sample runs one operation. Jitter is color_twist, DALI's one fused pass: contrast turns about mid-gray
instead of the image's mean, in fixed order. Both are in this baseline's favor.
"""

import numpy as np

from bench.loaders import Unavailable
from bench.tasks import JITTER

try:
    from nvidia.dali import fn, math, pipeline_def, types
except ImportError as error:
    raise Unavailable(f"DALI is not installed (pip install nvidia-dali-cuda130): {error}") from error

PREFETCHED = 2  # batches that DALI works on at a time, its default


def prepare(task, data, *, batch, workers):
    pipeline = _pipeline(task, [str(file) for file in data.files[task.split]])
    pipeline = pipeline(batch_size=batch, num_threads=workers, device_id=None, prefetch_queue_depth=PREFETCHED, seed=0)
    pipeline.build()
    first = True

    def epoch(batches):
        """Scheduled by hand: left to itself, DALI goes on working after the last batch, in the time of others."""
        nonlocal first
        scheduled = 0
        for done in range(batches):
            while scheduled < min(done + PREFETCHED, batches):
                pipeline.schedule_run()
                scheduled += PREFETCHED if first else 1  # the first call of all schedules the whole queue
                first = False
            (images,) = pipeline.share_outputs()
            yield np.asarray(images.as_tensor())
            pipeline.release_outputs()
        for _ in range(scheduled - batches):
            pipeline.share_outputs()
            pipeline.release_outputs()

    return epoch


def _pipeline(task, files):
    @pipeline_def(enable_conditionals=True)
    def define():
        encoded, _ = fn.readers.file(files=files, random_shuffle=task.split == "train", name="files")
        images = _cropped(task, encoded)
        if task.flip:
            images = fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5))
        if task.augment == "three":
            images = _augmented(images)
        return images

    return define


def _cropped(task, encoded):
    if task.crop == "rrc":
        images = fn.decoders.image_random_crop(encoded, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
    else:
        shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.INT32)[:2]
        side = fn.reductions.min(shape)
        place = fn.random.uniform(range=[0.0, 1.0]) if task.crop == "src" else 0.5
        start = fn.cast(math.floor(place * (shape - side) + 0.5), dtype=types.INT32)
        images = fn.decoders.image_slice(encoded, start=start, shape=fn.stack(side, side), axes=[0, 1])
    return fn.resize(images, size=[task.size, task.size], interp_type=types.INTERP_CUBIC, antialias=True)


def _augmented(images):
    choice = fn.random.uniform(values=[0, 1, 2], dtype=types.INT32)
    if choice == 0:
        gray = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
        images = fn.color_space_conversion(gray, image_type=types.GRAY, output_type=types.RGB)
    elif choice == 1:
        solarized = [value if value < 128 else 255 - value for value in range(256)]
        images = fn.lookup_table(images, keys=list(range(256)), values=solarized, dtype=types.UINT8)
    else:
        images = fn.gaussian_blur(images, sigma=fn.random.uniform(range=[0.1, 2.0]))
    factors = [fn.random.uniform(range=[1 - JITTER, 1 + JITTER]) for _ in range(3)]
    return fn.color_twist(images, brightness=factors[0], contrast=factors[1], saturation=factors[2])
