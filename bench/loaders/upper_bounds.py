"""What no loader of JPEGs can beat: libjpeg-turbo alone, on whole files in memory, to RGBX. At 1/8 scale the inverse
DCT is one addition a block, so what is left is entropy decoding. A batch here is its last image,
as if repeated."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.dataset import LONGEST
from ffcv_ops.jpeg import turbojpeg

RGBX, FAST_DCT, ACCURATE_DCT = 2, 2048, 4096  # turbojpeg.h


def prepare(task, data, *, batch, workers, scale=1, fast_dct=False):
    library = turbojpeg.load()  # calls release the GIL
    files = [np.fromfile(file, np.uint8) for file in data.files[task.split]]
    flags = FAST_DCT if fast_dct else ACCURATE_DCT
    pool = ThreadPoolExecutor(workers)

    def decode(number):
        """Batch `number`."""
        handle, buffer = ctypes.c_void_p(library.tjInitDecompress()), np.empty(4 * LONGEST**2, np.uint8)
        for k in range(number * batch, (number + 1) * batch):
            jpeg = files[k % len(files)]
            pointer, size = jpeg.ctypes.data_as(ctypes.c_void_p), ctypes.c_ulong(jpeg.size)
            width, height, sampling, colors = (ctypes.c_int() for _ in range(4))
            header = map(ctypes.byref, (width, height, sampling, colors))
            failed = library.tjDecompressHeader3(handle, pointer, size, *header)
            shape = (-(-height.value // scale), -(-width.value // scale))
            pixels = buffer.ctypes.data_as(ctypes.c_void_p)
            failed |= library.tjDecompress2(handle, pointer, size, pixels, shape[1], 0, shape[0], RGBX, flags)
            if failed:
                raise ValueError(f"{data.files[task.split][k % len(files)]} did not decode")
        library.tjDestroy(handle)
        return buffer[: 4 * shape[0] * shape[1]].reshape(*shape, 4)

    def epoch(batches):
        for image in pool.map(decode, range(batches)):
            yield np.broadcast_to(image, (batch, *image.shape))

    return epoch
