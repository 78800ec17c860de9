"""The FFCV operation that does everything to a sample while it is in cache: decode, crop, resample, flip, augment.

In: the batch's sample ids and FFCV's memory. Out: uint8 [batch, size, size, 3]. Each of the loader's threads takes the
next sample until there is none; since all randomness comes from the sample id, the result does not depend on which
thread took it. The crop is drawn first, so that no more is decoded than it shows. Stored bytes are held against their
checksum before they are decoded.
"""

import math
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ffcv_ops import crops, erasing, jpeg, lanes, operations, policies, randaugment, resample, rng
from ffcv_ops.compiled import kernel
from ffcv_ops.pixels import interleave
from ffcv_ops.rng import RandomKey
from ffcv_ops.stock import IMAGE_MODES, AllocationQuery, IntDecoder, SimpleRGBImageDecoder
from ffcv_ops.storage import reading
from ffcv_ops.storage.checksum import xxh64
from ffcv_ops.storage.index import Index, column

JPG, RAW = int(IMAGE_MODES["jpg"]), int(IMAGE_MODES["raw"])

OK, CORRUPT = jpeg.OK, jpeg.CORRUPT
UNREAD, CHANGED = 2, 3
FAULTS = {
    CORRUPT: "could not be decoded (damaged data)",
    UNREAD: "could not be read",
    CHANGED: "is not what was written (its checksum differs)",
}


class TransformParams(NamedTuple):
    """What is done to every sample: words of the recipe as the numbers that the kernels understand."""

    crop: int = crops.RRC
    scale_low: float = 0.08  # RandomResizedCrop: share of the image's area
    scale_high: float = 1.0
    ratio: float = 1.0  # centre crop: size / shortest side
    interpolation: int = resample.BICUBIC
    least: float = 0.0  # source pixels per output pixel that must remain when less is decoded; 0: decode everything
    flip: float = 0.0  # probability
    augment: int = policies.NONE
    three_ops: int = policies.GRAY | policies.SOLARIZE | policies.BLUR
    rand_layers: int = 2  # this and the following: randaugment.Strength (numba's loops take no nested tuples)
    rand_probability: float = 0.5
    rand_magnitude: float = 10.0
    rand_deviation: float = 0.0
    rand_limit: float = 10.0
    rand_law: int = operations.PLAIN
    jitter: float = 0.0
    erase: float = 0.0  # probability
    erase_mode: int = erasing.PIXEL


@intrinsic
def next_ticket(typing_context, counter):
    """Atomically adds one to counter[0] (int64 array) and returns the value before: the ticket of a free thread."""

    def generate(context, builder, signature, arguments):
        array = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


class Source(NamedTuple):
    """What is read of one sample: number of the level, eighths of its size that the DCT keeps, sides after that."""

    level: int
    eighths: int
    height: int
    width: int


@kernel
def source_of(view, heights, widths, modes, least):
    """The least that still has `least` pixels for each output pixel of the view, in both directions (0: everything).

    heights, widths, modes: of the sample's levels, from the largest on. Scaling by the DCT comes after the choice of a
    level, because small levels are cheaper to read.
    """
    level, eighths = 0, jpeg.WHOLE
    if least > 0.0:
        wanted = least * max(view.full_height / view.box_height, view.full_width / view.box_width)
        while level + 1 < len(heights) and _scale(heights, widths, level + 1) >= wanted:
            level += 1
        while modes[level] == JPG and eighths > 1 and _scale(heights, widths, level) * eighths >= 16 * wanted:
            eighths //= 2
    return Source(level, eighths, jpeg.scaled(heights[level], eighths), jpeg.scaled(widths[level], eighths))


@kernel
def _scale(heights, widths, level):
    """The smaller of the two ratios of this level's sides to the full level's."""
    return min(heights[level] / heights[0], widths[level] / widths[0])


@kernel
def _axis(begin, end, ratio, side, full, offset, flip, interpolation, first, count, weights):
    """The weights of one axis where the box [begin, end) of the full level is [begin, end) * ratio of what is decoded,
    whose side is `side`. Returns the range of pixels that they touch, and that of the box."""
    low, high = begin * ratio, end * ratio
    box = (math.floor(low), min(math.ceil(high), side))
    resample.axis_weights(low, high, box[0], box[1], full, offset, flip, interpolation, first, count, weights)
    return (first.min(), (first + count).max()), box


@kernel
def _read_raw(address, width, first_row, count, columns, pixels):
    """Rows first_row and following of a stored RGB image `width` pixels wide -> the first rows of `pixels`, as RGBX."""
    for y in range(count):
        begin, n = y * width + columns[0], columns[1] - columns[0]
        line = lanes.values(address + np.uint64(3 * (first_row * width + begin)), 3 * n)
        target = pixels[begin : begin + n]
        for x in range(n):
            red, green, blue = np.uint32(line[3 * x]), np.uint32(line[3 * x + 1]), np.uint32(line[3 * x + 2])
            target[x] = red | green << np.uint32(8) | blue << np.uint32(16)


@kernel
def fetch(file, place, size, checksum, checked, buffer):
    """(address, OK) of an image's bytes, or (0, what is wrong with them); `checked`: whether it has a checksum."""
    address = reading.fetch(file, place, size, buffer)
    if address == 0:
        return address, UNREAD
    if checked and xxh64(address, size) != checksum:
        return address, CHANGED
    return address, OK


@kernel
def _show(decoder, files, places, sizes, checksums, checked, modes, heights, widths, plan, key, workspace, out):
    """One stored sample, given by its levels -> out [size, size, 3], augmented with the random numbers of `key`.

    Returns OK or what is wrong with it.
    """
    first, count, weights, pixels, scratch, planes, spare, buffer = workspace
    size = planes.shape[1]
    view = crops.locate(plan.crop, heights[0], widths[0], size, plan.scale_low, plan.scale_high, plan.ratio, key)
    flip = rng.uniform(key, rng.FLIP) < plan.flip
    source = source_of(view, heights, widths, modes, plan.least)
    level, part = source.level, source.eighths / jpeg.WHOLE
    rows, box_rows = _axis(
        view.box_top, view.box_top + view.box_height, heights[level] / heights[0] * part, source.height,
        view.full_height, view.top, False, plan.interpolation, first[0], count[0], weights[0],
    )  # fmt: skip
    columns, box_columns = _axis(
        view.box_left, view.box_left + view.box_width, widths[level] / widths[0] * part, source.width,
        view.full_width, view.left, flip, plan.interpolation, first[1], count[1], weights[1],
    )  # fmt: skip
    down_first = resample.vertical_first(
        box_rows[1] - box_rows[0], box_columns[1] - box_columns[0], view.full_height, view.full_width
    )
    address, status = fetch(files[level], places[level], sizes[level], checksums[level], checked, buffer)
    if status != OK:
        return status
    is_jpg = modes[level] == JPG
    if is_jpg:
        luma = plan.least > 0.0 and policies.is_gray(plan.augment, plan.three_ops, key)
        status = jpeg.begin(
            decoder, address, sizes[level], heights[level], widths[level], source.eighths, luma,
            rows, columns, pixels,
        )  # fmt: skip
    elif sizes[level] != 3 * heights[level] * widths[level]:
        return CORRUPT
    y, step = rows[0], rows[1] - rows[0] if down_first else jpeg.ROWS_AT_ONCE
    while y < rows[1] and status == OK:
        n = min(step, rows[1] - y)
        if is_jpg:
            status = jpeg.rows(decoder, pixels, source.width, n)
        else:
            _read_raw(address, widths[level], y, n, columns, pixels)
        resample.take_rows(
            pixels, source.width, y, n, down_first, rows, columns, first, count, weights, scratch, planes
        )
        y += n
    if is_jpg and status == OK:
        status = jpeg.end(decoder)
    if status != OK:
        return status
    rand = randaugment.Strength(
        plan.rand_layers, plan.rand_probability, plan.rand_magnitude,
        plan.rand_deviation, plan.rand_limit, plan.rand_law,
    )  # fmt: skip
    policies.apply(planes, plan.augment, plan.three_ops, rand, plan.interpolation, plan.jitter, key, spare)
    if plan.erase > 0.0:
        erasing.erase(planes, plan.erase, plan.erase_mode, key)
    interleave(planes, out)
    return OK


@kernel
def _workspace(sizes, heights, widths, size, interpolation):
    """One thread's scratch memory for images of these heights and widths, stored in so many bytes."""
    area = ((heights + 16) * widths).max() + 16
    longest = max(heights.max(), widths.max())
    taps = resample.taps(0, longest, size, interpolation)
    first, count = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    weights = np.empty((2, size, taps), np.int32)
    pixels, scratch = np.empty(area, np.uint32), np.empty(resample.scratch_size(longest, size), np.uint8)
    planes, spare = np.empty((3, size, size), np.uint8), np.empty(policies.scratch(size, size), np.uint8)
    return first, count, weights, pixels, scratch, planes, spare, np.empty(sizes.max(), np.uint8)


@kernel
def _decode_some(
    ticket, sample_ids, files, places, sizes, checksums, checked, modes, heights, widths, seed, plan, out, faults
):
    """What one thread does of a batch: fills out [batch, size, size, 3] and faults [batch] (OK, CORRUPT, UNREAD or
    CHANGED) at the places that its tickets say.

    files, places, sizes, checksums, modes, heights, widths: [batch, levels]. checked: whether the checksums count.
    """
    decoder = jpeg.open_decoder()
    work = _workspace(sizes, heights, widths, out.shape[1], plan.interpolation)
    i = next_ticket(ticket)
    while i < len(sample_ids):
        faults[i] = _show(
            decoder, files[i], places[i], sizes[i], checksums[i], checked, modes[i], heights[i], widths[i],
            plan, RandomKey(seed, sample_ids[i]), work, out[i],
        )  # fmt: skip
        i = next_ticket(ticket)
    jpeg.close_decoder(decoder)


def show(image: np.ndarray, *, plan: TransformParams, resolution: int, key: RandomKey) -> np.ndarray:
    """What training sees of `image` (uint8 [height, width, 3]) under this key: uint8 [resolution, resolution, 3]."""
    image = np.ascontiguousarray(image)
    out = np.empty((1, resolution, resolution, 3), np.uint8)
    height, width, _ = image.shape
    file, place = np.array([[reading.IN_MEMORY]], np.int32), np.array([[image.ctypes.data]], np.uint64)
    size, mode, height, width = (np.array([[n]], np.int64) for n in (image.nbytes, RAW, height, width))
    _decode_some(
        np.zeros(1, np.int64), np.array([key.sample_id]), file, place, size, np.zeros((1, 1), np.uint64), False,
        mode, height, width, key.seed, plan, out, np.zeros(1, np.uint8),
    )  # fmt: skip
    return out[0]


class SampleError(ValueError):
    """Stored images of a batch that cannot be shown: their places in the batch, and what is wrong with each."""

    def __init__(self, places: np.ndarray, faults: np.ndarray):
        super().__init__(places, faults)
        self.places, self.faults = places, faults


class ImageDecoder(SimpleRGBImageDecoder):
    """Decodes, crops, resamples, flips and augments as `plan` says, to `resolution` x `resolution` pixels.

    The small function below gathers where the samples lie; the loop over samples is our own kernel, compiled once and
    kept on disk, in `workers` threads that Python starts: unlike Numba's, they serve several loaders at a time, and do
    not spin while they wait. `resolution` may be changed between epochs. For our `Loader` only, which says what is
    `stored`: FFCV's own would compile this.
    """

    def __init__(self, *, plan: TransformParams, resolution: int, seed: int, workers: int):
        super().__init__()
        self.plan, self.resolution, self.seed, self.workers = plan, resolution, seed, workers
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def reads(self, index: Index, levels: tuple[str, ...]) -> None:
        """Says where the images are described, and which of their levels may be decoded."""
        self.index, self.levels = index, [column(index, name) for name in levels]

    def declare_state_and_memory(self, previous_state):
        shape, dtype = (self.resolution, self.resolution, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self):
        def decode(sample_ids, out, metadata, storage):
            indices = sample_ids % len(metadata)
            stored = np.stack([level[indices] for level in self.levels], axis=1)
            image = np.searchsorted(self.index.places, stored["data_ptr"])
            checked = self.index.checksums is not None
            checksums = self.index.checksums[image] if checked else np.zeros(image.shape, np.uint64)
            files, places = self.memory_read(stored["data_ptr"], storage)
            sizes = self.index.sizes[image].astype(np.int64)
            columns = [stored[name].astype(np.int64) for name in ("mode", "height", "width")]
            faults = np.zeros(len(sample_ids), np.uint8)
            work = (sample_ids, files, places, sizes, checksums, checked, *columns, self.seed, self.plan, out, faults)
            ticket = np.zeros(1, np.int64)
            running = [self.threads.submit(_decode_some, ticket, *work) for _ in range(self.workers)]
            wait(running)  # all of them: what they write to is used again
            for thread in running:
                thread.result()
            if faults.any():
                raise SampleError(np.flatnonzero(faults), faults[faults > 0])
            return out[: len(sample_ids)]

        return decode


class LabelDecoder(IntDecoder):
    """The label of each sample id's image, int64 [batch, 1]."""

    def generate_code(self):
        def decode(sample_ids, out, metadata, storage):
            out[: len(sample_ids), 0] = metadata[sample_ids % len(metadata)]
            return out[: len(sample_ids)]

        return decode
