"""torchvision's v2 transforms on uint8 tensors, decoded by torchvision.io or by torchcodec, in DataLoader workers.
Batches: uint8 [n, 3, size, size]. The blur takes 13 taps, 3 sigma of the largest."""

import torch
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from bench.loaders import Unavailable
from bench.loaders.files import Files, epochs_of
from bench.loaders.torchvision_steps import steps_of

THREE = [v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(13, sigma=(0.1, 2.0))]


def read(path):
    return decode_jpeg(read_file(path), mode="RGB")


def torchcodec_reader():
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, RuntimeError) as error:
        raise Unavailable(f"torchcodec is not installed (pip install torchcodec): {error}") from error
    return decode_jpeg


def transform_of(task):
    return v2.Compose(steps_of(task, v2, THREE))


def prepare(task, data, *, batch, workers, torchcodec=False):
    torch.set_num_threads(1)  # as in DataLoader's workers
    dataset = Files(data.files[task.split], torchcodec_reader() if torchcodec else read, transform_of(task))
    return epochs_of(dataset, batch=batch, workers=workers)
