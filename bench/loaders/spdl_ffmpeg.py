"""SPDL: its pipeline of threads, in which FFmpeg decodes, crops, scales and flips. Batches: uint8 [n, size, size, 3].

It has no augmentations. FFmpeg crops whole chroma samples, so that a box may be a pixel off, and the simple random crop
lacks the paper's 4 reflected border pixels. Both are in this baseline's favor.
"""

import random

import numpy as np
import torch
from torchvision.transforms import RandomResizedCrop

from bench.loaders import Unavailable

try:
    import spdl.io
    from spdl.pipeline import PipelineBuilder
except (ImportError, RuntimeError) as error:
    raise Unavailable(f"SPDL is not installed (pip install spdl): {error}") from error

PREFETCHED = 2  # batches


def prepare(task, data, *, batch, workers):
    files = [str(file) for file in data.files[task.split]]

    def load(number):
        packets = spdl.io.demux_image(files[number % len(files)])
        frames = spdl.io.decode_packets(packets, _filters(task, packets.height, packets.width))
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    try:
        load(0)
    except RuntimeError as error:
        raise Unavailable(f"SPDL cannot read a JPEG; does it find FFmpeg's libraries? {error}") from error

    def epoch(batches):
        numbers = random.sample(range(batches * batch), batches * batch)
        builder = PipelineBuilder().add_source(numbers).pipe(load, concurrency=workers)
        pipeline = builder.aggregate(batch).pipe(np.stack).add_sink(PREFETCHED).build(num_threads=workers)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def _filters(task, height, width):
    """FFmpeg's filters for an image of this size."""
    size, flip = task.size, ["hflip"] if task.flip and random.random() < 0.5 else []
    if task.crop == "rrc":
        image = torch.empty(3, height, width, device="meta")
        top, left, h, w = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        steps = [f"crop={w}:{h}:{left}:{top}", f"scale={size}:{size}:flags=bicubic"]
    else:
        full = size * width // min(height, width), size * height // min(height, width)
        left, top = (random.randint(0, side - size) if task.crop == "src" else (side - size) // 2 for side in full)
        steps = [f"scale={full[0]}:{full[1]}:flags=bicubic", f"crop={size}:{size}:{left}:{top}"]
    return ",".join([*steps, *flip, "format=pix_fmts=rgb24"])
