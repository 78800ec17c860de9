"""Our decoders and augmentations as operations of FFCV's own loader, beside FFCV's own.

    pipeline = [RandomResizedCropRGBImageDecoder(224, flip=0.5, seed=1), ThreeAugment(seed=1), ToTensor()]
    loader = ffcv.loader.Loader("train.beton", batch_size=256, num_workers=8, pipelines={"image": pipeline})

FFCV compiles a small function for each, which hands the batch to our kernels in FFCV's threads. A random number is a
hash of (seed, epoch, sample, purpose), so that pixels depend neither on the number of threads nor on a restart, and are
those of our own loader. Epochs count from 0, as FFCV's do for its order; `set_epoch` goes on from another one.
Operations of one kind with one seed draw the same numbers: a second view of an image needs another seed.
"""

import contextlib
import ctypes
import queue
import threading
from dataclasses import replace

import numpy as np

from ffcv_ops.augment import calls, load
from ffcv_ops.augment.operations import scratch_size
from ffcv_ops.compiled import kernel
from ffcv_ops.errors import UserError
from ffcv_ops.kernels import crops, resample
from ffcv_ops.kernels.pixels import deinterleave, interleave
from ffcv_ops.kernels.tickets import next_ticket
from ffcv_ops.rng import RandomKey
from ffcv_ops.stock import AllocationQuery, Compiler, Operation, SimpleRGBImageDecoder
from ffcv_ops.storage.reading import IN_MEMORY
from ffcv_ops.stored_images import FAULTS, STORED_IMAGE
from ffcv_ops.transform import TransformParams, transform_samples

_BYTE = np.dtype("u1")


def set_epoch(loader, epoch: int) -> None:
    """The next epoch of a stock FFCV loader is number `epoch`: its order, and what operations draw. For restarts."""
    if epoch < 0:
        raise UserError(f"epochs are numbered from 0; {epoch} is none")
    loader.next_epoch = epoch
    for spec in loader.pipeline_specs.values():
        for operation in (spec.decoder, *spec.transforms):
            if isinstance(operation, _Repeatable):
                operation.next_epoch = epoch


class _Repeatable:
    """What draws numbers by (seed, epoch, sample)."""

    def __init__(self, seed: int, interpolation: str):
        super().__init__()
        if interpolation not in resample.NAMES:
            raise UserError(f"interpolation is {interpolation!r}; it must be one of {', '.join(resample.NAMES)}")
        self.seed, self.interpolation, self.next_epoch = seed, resample.NAMES[interpolation], 0

    def epoch_memory(self) -> AllocationQuery:
        """Memory of no bytes whose last side tells the compiled function the epoch: FFCV's operations are told of none.
        FFCV unpacks the shape when it allocates memory for an epoch, once, and not before."""
        return AllocationQuery(self._begin_epoch(), _BYTE)

    def _begin_epoch(self):
        yield 0
        yield self.next_epoch
        self.next_epoch += 1


@kernel
def ids_of(indices, epoch, samples):
    """The sample ids (rng.py) of this batch: int64 [batch]."""
    ids = np.empty(len(indices), np.int64)
    for i in range(len(indices)):
        ids[i] = np.int64(indices[i]) + epoch * samples
    return ids


class ImageDecoder(_Repeatable, SimpleRGBImageDecoder):
    """Decodes, crops, resamples and flips: uint8 [batch, size, size, 3]. `output_size` may be changed between epochs.

    A sample that cannot be decoded ends the epoch with a UserError in the loop that reads batches.
    """

    def __init__(self, output_size, params: TransformParams, seed: int, interpolation: str):
        super().__init__(seed, interpolation)
        self.output_size, self.params = output_size, params._replace(interpolation=self.interpolation)
        self._shape()
        if not 0 <= params.flip <= 1:
            raise UserError(f"flip is {params.flip}; it must be a probability, 0 to 1")
        if not 0 < params.scale_low <= params.scale_high <= 1 or not 0 < params.ratio <= 1:
            raise UserError("scale must be two shares of the image, 0 < low <= high <= 1, and ratio 0 < ratio <= 1")

    def _shape(self):
        height, width = (self.output_size,) * 2 if np.isscalar(self.output_size) else self.output_size
        if height != width or height < 1:
            raise UserError(f"output_size is {self.output_size}; images are square: give the side, 1 or more")
        return int(height), int(width), 3

    def declare_state_and_memory(self, previous_state):
        state = replace(previous_state, jit_mode=True, shape=self._shape(), dtype=_BYTE)
        return state, (AllocationQuery(state.shape, _BYTE), self.epoch_memory())

    def generate_code(self):
        transform, ids, stop = transform_samples.dispatcher, ids_of.dispatcher, _stop
        params, seed, read, samples = self.params, self.seed, self.memory_read, len(self.metadata)
        each_thread, threads = Compiler.get_iterator(), Compiler.num_threads

        def describe(indices, metadata, storage):
            table = np.zeros((len(indices), 1), STORED_IMAGE)
            for i in range(len(indices)):
                of, image = metadata[indices[i]], table[i, 0]
                stored = read(of["data_ptr"], storage)
                image["file"], image["place"], image["size"] = IN_MEMORY, stored.ctypes.data, len(stored)
                image["mode"], image["height"], image["width"] = of["mode"], of["height"], of["width"]
            return table

        described = Compiler.compile(describe)

        def decode(indices, memory, metadata, storage):
            out, epoch = memory
            sample_ids, table = ids(indices, epoch.shape[2], samples), described(indices, metadata, storage)
            ticket, faults = np.zeros(1, np.int64), np.zeros(len(indices), np.uint8)
            for _ in each_thread(threads):
                transform(ticket, sample_ids, table, seed, params, out, faults)
            place = faults.argmax()
            if faults[place] > 0:
                stop(indices[place], faults[place])
            return out[: len(indices)]

        decode.is_parallel = True
        return decode


class _Failure:
    """In FFCV's queue in place of a batch: raises an error when the loop unpacks it."""

    def __init__(self, error: UserError):
        self.error = error

    def __iter__(self):
        raise self.error


@ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
def _stop(sample, fault):
    """Called in FFCV's thread: the loop that waits for its batches gets an error in place of the next one. What that
    thread raises, FFCV swallows, and the loop waits for ever."""
    iterator = threading.current_thread()
    iterator.iter_ixes = iter(())  # this batch is the last
    said = f"{iterator.loader.fname}: sample {sample} {FAULTS[fault]}; write the file again, or leave that image out"
    while not iterator.terminate_event.is_set():
        with contextlib.suppress(queue.Full):
            return iterator.output_queue.put(_Failure(UserError(said)), timeout=0.5)


@kernel
def augment_samples(ticket, sample_ids, images, seed, chain, out):
    """What one thread does of a batch: images, uint8 [batch, height, width, 3] -> out, at its tickets' places."""
    _, height, width, _ = images.shape
    planes, scratch = np.empty((3, height, width), np.uint8), np.empty(scratch_size(height, width), np.uint8)
    i = next_ticket(ticket)
    while i < len(sample_ids):
        deinterleave(images[i], planes)
        calls.apply(chain, planes, RandomKey(seed, sample_ids[i]), scratch)
        interleave(planes, out[i])
        i = next_ticket(ticket)


class Augment(_Repeatable, Operation):
    """A chain of augmentations as recipes spell it, `three(gray+blur) | jitter(0.3)` (docs/augmentations.md), in one
    pass over each sample: uint8 [batch, height, width, 3] in and out."""

    def __init__(self, chain: str, *, seed: int = 0, interpolation: str = "bicubic"):
        super().__init__(seed, interpolation)
        self.text, self.chain = chain, load.compiled(load.from_text(chain), self.interpolation)

    def declare_state_and_memory(self, previous_state):
        state = previous_state
        if not state.jit_mode or len(state.shape) != 3 or state.shape[2] != 3 or state.dtype != _BYTE:
            raise UserError(f"{self.text}: takes uint8 images [height, width, 3]; put it before ToTensor and the like")
        return state, (AllocationQuery(state.shape, _BYTE), self.epoch_memory())

    def generate_code(self):
        augment, ids = augment_samples.dispatcher, ids_of.dispatcher
        chain, seed, samples = self.chain, self.seed, len(self.metadata)
        each_thread, threads = Compiler.get_iterator(), Compiler.num_threads

        def augment_batch(images, memory, indices):
            out, epoch = memory
            sample_ids, ticket = ids(indices, epoch.shape[2], samples), np.zeros(1, np.int64)
            for _ in each_thread(threads):
                augment(ticket, sample_ids, images, seed, chain, out)
            return out[: len(images)]

        augment_batch.is_parallel = augment_batch.with_indices = True
        return augment_batch


def RandomResizedCropRGBImageDecoder(
    output_size, scale=(0.08, 1.0), *, flip=0.0, seed=0, interpolation="bicubic"
) -> ImageDecoder:
    """torchvision's RandomResizedCrop with Pillow's resampling. scale: shares of the area. flip: probability."""
    params = TransformParams(crop=crops.RRC, scale_low=float(scale[0]), scale_high=float(scale[1]), flip=float(flip))
    return ImageDecoder(output_size, params, seed, interpolation)


def SimpleRandomCropRGBImageDecoder(output_size, *, flip=0.0, seed=0, interpolation="bicubic") -> ImageDecoder:
    """DeiT III's simple random crop: short side to the size, 4 mirrored pixels around it, a window of the size."""
    return ImageDecoder(output_size, TransformParams(crop=crops.SRC, flip=float(flip)), seed, interpolation)


def CenterCropRGBImageDecoder(output_size, ratio=1.0, *, interpolation="bicubic") -> ImageDecoder:
    """Evaluation: short side to size / ratio, then the center."""
    return ImageDecoder(output_size, TransformParams(crop=crops.CENTER, ratio=float(ratio)), 0, interpolation)


def ThreeAugment(ops="gray+solarize+blur", *, seed=0) -> Augment:
    """DeiT III's 3-Augment: one of these for each sample."""
    return Augment(f"three({ops})", seed=seed)


def ColorJitter(strength=0.3, *, seed=0) -> Augment:
    """Brightness, contrast and saturation times 1 -+ strength, in random order; no hue."""
    return Augment(f"jitter({strength})", seed=seed)


def RandomGrayscale(p=0.1, *, seed=0) -> Augment:
    return Augment(f"gray({p})", seed=seed)


def RandomSolarize(threshold=128, p=0.5, *, seed=0) -> Augment:
    return Augment(f"solarize({p}, {threshold})", seed=seed)


def GaussianBlur(sigma=(0.1, 2.0), p=1.0, *, seed=0) -> Augment:
    """Pillow's blur; sigma: the range of the standard deviation, pixels."""
    return Augment(f"blur({p}, {sigma[0]}, {sigma[1]})", seed=seed)


def RandAugment(config="rand-m9-mstd0.5-inc1", *, seed=0, interpolation="bicubic") -> Augment:
    """timm's, in its notation."""
    return Augment(f"rand({config})", seed=seed, interpolation=interpolation)


def AutoAugment(policy="original", *, seed=0, interpolation="bicubic") -> Augment:
    """timm's; policy: original or v0."""
    return Augment(f"auto-{policy}", seed=seed, interpolation=interpolation)


def TrivialAugment(*, seed=0) -> Augment:
    """torchvision's TrivialAugmentWide."""
    return Augment("trivial", seed=seed)


def RandomErasing(p=0.25, mode="pixel", *, seed=0) -> Augment:
    """timm's; mode: const, rand or pixel."""
    return Augment(f"erase({p}, {mode})", seed=seed)
