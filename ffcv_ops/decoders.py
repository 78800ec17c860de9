"""The FFCV operation that does everything to a sample while it is in cache: decode, crop, resample, flip, augment.

In: the batch's draw ids and FFCV's memory. Out: uint8 [batch, size, size, 3]. One parallel loop per batch; a free
thread takes the next sample, and since all randomness comes from the draw id, the result does not depend on which
thread took it.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from llvmlite import ir
from numba import carray, get_num_threads, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from ffcv_ops import crops, draws, erasing, jpeg, operations, pixels, policies, randaugment, resample
from ffcv_ops.compiled import kernel

_JPG = int(IMAGE_MODES["jpg"])


class Plan(NamedTuple):
    """What is done to every sample: words of the recipe as the numbers that the kernels understand."""

    crop: int = crops.RRC
    scale_low: float = 0.08  # RandomResizedCrop: share of the image's area
    scale_high: float = 1.0
    ratio: float = 1.0  # centre crop: size / shortest side
    interpolation: int = resample.BICUBIC
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
def _next(typing_context, counter):
    """Atomically adds one to counter[0] (int64 array) and returns the value before: the ticket of a free thread."""

    def generate(context, builder, signature, arguments):
        array = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def _pointer(typing_context, address):
    """An integer address as a pointer to bytes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(address), generate


@kernel
def _to_rgbx(stored, image):
    """RGB values (uint8 [n, 3]) -> RGBX pixels (uint32, the first n of `image`)."""
    for x in range(len(stored)):
        red, green, blue = np.uint32(stored[x, 0]), np.uint32(stored[x, 1]), np.uint32(stored[x, 2])
        image[x] = red | green << np.uint32(8) | blue << np.uint32(16)


@kernel
def _show(image, plan, seed, draw, workspace, out):
    """RGBX pixels of a whole image (uint32 [height, width]) -> out, the augmented sample of this draw."""
    first, count, weights, scratch, planes, spare = workspace
    height, width = image.shape
    size = planes.shape[1]
    view = crops.locate(plan.crop, height, width, size, plan.scale_low, plan.scale_high, plan.ratio, seed, draw)
    flip = draws.uniform(seed, draw, draws.FLIP) < plan.flip
    bottom, right = view.box_top + view.box_height, view.box_left + view.box_width
    resample.axis_weights(
        view.box_top, bottom, view.box_top, bottom, view.full_height, view.top, False,
        plan.interpolation, first[0], count[0], weights[0],
    )  # fmt: skip
    resample.axis_weights(
        view.box_left, right, view.box_left, right, view.full_width, view.left, flip,
        plan.interpolation, first[1], count[1], weights[1],
    )  # fmt: skip
    rows = (first[0].min(), (first[0] + count[0]).max())
    columns = (first[1].min(), (first[1] + count[1]).max())
    down_first = resample.vertical_first(view.box_height, view.box_width, view.full_height, view.full_width)
    resample.resample(image, down_first, rows, columns, first, count, weights, scratch, planes)
    rand = randaugment.Strength(
        plan.rand_layers, plan.rand_probability, plan.rand_magnitude,
        plan.rand_deviation, plan.rand_limit, plan.rand_law,
    )  # fmt: skip
    policies.apply(planes, plan.augment, plan.three_ops, rand, plan.interpolation, plan.jitter, seed, draw, spare)
    if plan.erase > 0.0:
        erasing.erase(planes, plan.erase, plan.erase_mode, seed, draw)
    pixels.interleave(planes, out)


@kernel
def _workspace(area, longest, size, interpolation):
    """One thread's scratch memory for images of up to `area` pixels with sides of up to `longest`."""
    taps = resample.taps(0, longest, size, interpolation)
    first, count = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    weights = np.empty((2, size, taps), np.int32)
    scratch = np.empty(resample.scratch_size(area, longest, size), np.uint32)
    planes, spare = np.empty((3, size, size), np.uint8), np.empty(policies.scratch(size, size), np.uint8)
    return first, count, weights, scratch, planes, spare


@kernel(parallel=True)
def _decode_batch(draw_ids, addresses, sizes, modes, heights, widths, seed, plan, threads, out):
    """Fills out [batch, size, size, 3]; returns the batch position of a sample that did not decode, or -1."""
    batch, size = len(draw_ids), out.shape[1]
    area, longest = 0, 1
    for i in range(batch):
        area = max(area, np.int64(heights[i]) * np.int64(widths[i]))
        longest = max(longest, np.int64(heights[i]), np.int64(widths[i]))
    ticket = np.zeros(1, np.int64)
    failed = np.full(threads, -1, np.int64)
    for thread in prange(threads):
        decoder = jpeg.open_decoder()
        header = np.empty(4, np.int32)
        image = np.empty(area, np.uint32)
        work = _workspace(area, longest, size, plan.interpolation)
        i = _next(ticket)
        while i < batch:
            height, width = np.int64(heights[i]), np.int64(widths[i])
            if modes[i] == _JPG:
                status = jpeg.decode(decoder, addresses[i], sizes[i], height, width, image, header)
            elif sizes[i] == 3 * height * width:
                _to_rgbx(carray(_pointer(addresses[i]), (height * width, 3), np.uint8), image)
                status = jpeg.OK
            else:
                status = jpeg.CORRUPT
            if status == jpeg.OK:
                _show(image[: height * width].reshape(height, width), plan, seed, draw_ids[i], work, out[i])
            else:
                failed[thread] = i
            i = _next(ticket)
        jpeg.close_decoder(decoder)
    return failed.max()


@kernel
def _show_array(pixels_rgb, plan, seed, draw, out):
    height, width, _ = pixels_rgb.shape
    image = np.empty(height * width, np.uint32)
    _to_rgbx(pixels_rgb.reshape(-1, 3), image)
    work = _workspace(height * width, max(height, width), out.shape[0], plan.interpolation)
    _show(image.reshape(height, width), plan, seed, draw, work, out)


def show(image: np.ndarray, *, plan: Plan, resolution: int, seed: int, draw: int) -> np.ndarray:
    """What training would see of `image` (uint8 [height, width, 3]) at this draw: uint8 [resolution, resolution, 3]."""
    out = np.empty((resolution, resolution, 3), np.uint8)
    _show_array(np.ascontiguousarray(image), plan, seed, draw, out)
    return out


class SampleError(ValueError):
    """A stored image could not be decoded. The argument is its index in the .beton."""


class ImageDecoder(SimpleRGBImageDecoder):
    """Decodes, crops, resamples, flips and augments as `plan` says, to `resolution` x `resolution` pixels.

    The small function below gathers where the samples lie; the loop over samples is our own kernel, compiled once and
    kept on disk. `resolution` may be changed between epochs. For our `Loader` only: FFCV's own would compile this.
    """

    def __init__(self, *, plan: Plan, resolution: int, seed: int):
        super().__init__()
        self.plan, self.resolution, self.seed = plan, resolution, seed

    def declare_state_and_memory(self, previous_state):
        shape, dtype = (self.resolution, self.resolution, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self):
        def decode(draw_ids, out, metadata, storage):
            stored = metadata[draw_ids % len(metadata)]
            addresses, sizes = self.memory_read(stored["data_ptr"], storage)
            shapes = (stored[name].astype(np.int64) for name in ("mode", "height", "width"))
            bad = _decode_batch(draw_ids, addresses, sizes, *shapes, self.seed, self.plan, get_num_threads(), out)
            if bad >= 0:
                raise SampleError(draw_ids[bad] % len(metadata))
            return out[: len(draw_ids)]

        return decode


class LabelDecoder(IntDecoder):
    """The label of each draw id's image, int64 [batch, 1]."""

    def generate_code(self):
        def decode(draw_ids, out, metadata, storage):
            out[: len(draw_ids), 0] = metadata[draw_ids % len(metadata)]
            return out[: len(draw_ids)]

        return decode
