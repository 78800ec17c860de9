"""One stored sample -> uint8 pixels of the batch: crop, decode, resample, flip, augment, in one pass.

The crop is drawn first, so that no more is decoded than it shows. Sixteen rows at a time go from the decoder into the
resampler while they are in the first-level cache; its three planes are what the augmentation works on.
"""

import math
from typing import NamedTuple

import numpy as np

from ffcv_ops import rng, stored_images
from ffcv_ops.augment import calls, operations
from ffcv_ops.augment.load import Compiled
from ffcv_ops.compiled import kernel
from ffcv_ops.jpeg import decoder
from ffcv_ops.kernels import crops, lanes, resample
from ffcv_ops.kernels.pixels import interleave
from ffcv_ops.kernels.span import Span
from ffcv_ops.kernels.tickets import next_ticket
from ffcv_ops.rng import RandomKey
from ffcv_ops.stored_images import CORRUPT, JPG, OK


class TransformParams(NamedTuple):
    """What is done to every sample: words of the recipe as the numbers that the kernels understand."""

    crop: int = crops.RRC
    scale_low: float = 0.08  # RandomResizedCrop: share of the image's area
    scale_high: float = 1.0
    ratio: float = 1.0  # center crop: size / shortest side
    interpolation: int = resample.BICUBIC
    min_oversampling: float = 0.0  # source pixels per output pixel that remain when less is decoded; 0: decode all
    flip: float = 0.0  # probability
    chain: Compiled = Compiled()  # the augmentations, after the flip


class Workspace(NamedTuple):
    """One thread's memory, used again for every sample of a batch."""

    buffer: np.ndarray  # uint8: the stored bytes
    pixels: np.ndarray  # uint32: decoded rows, RGBX
    resampler: resample.Workspace
    planes: np.ndarray  # uint8 [3, size, size]
    scratch: np.ndarray  # uint8: the augmentation's


class Source(NamedTuple):
    """What is decoded of a sample: the number of the level, the scale of its DCT (eighths), the sides after that."""

    level: int
    scale_num: int
    height: int
    width: int


@kernel
def source_of(view, levels, min_oversampling):
    """The smallest source with `min_oversampling` pixels for each output pixel of the view in both directions (0: the
    whole image).

    levels: STORED_IMAGE [levels], the largest first. Scaling by the DCT comes after the choice of a level, because
    small levels are cheaper to read.
    """
    level, scale_num = 0, decoder.UNSCALED
    if min_oversampling > 0.0:
        wanted = min_oversampling * max(view.full_height / view.box_height, view.full_width / view.box_width)
        while level + 1 < len(levels) and _ratio(levels, level + 1) >= wanted:
            level += 1
        # 4, 2 and 1 eighths only: libjpeg-turbo has no vector code for the others
        while levels[level].mode == JPG and scale_num > 1 and _ratio(levels, level) * scale_num >= 16 * wanted:
            scale_num //= 2
    height, width = levels[level].height, levels[level].width
    return Source(level, scale_num, decoder.scaled(height, scale_num), decoder.scaled(width, scale_num))


@kernel
def _ratio(levels, level):
    """The smaller of the two ratios of this level's sides to the full level's."""
    return min(levels[level].height / levels[0].height, levels[level].width / levels[0].width)


@kernel
def _axis(begin, length, ratio, side, full, offset, flip):
    """The resampler's axis where the box that begins at `begin` of the full level lies, multiplied by `ratio`, in what
    is decoded, whose side is `side`. full, offset: of the view, in pixels of the result."""
    low, high = begin * ratio, (begin + length) * ratio
    return resample.Axis(low, high, Span(math.floor(low), min(math.ceil(high), side)), full, offset, flip)


@kernel
def _plan_resize(view, flip, levels, source, interpolation, resampler):
    """Fills the resampler's taps for a view of a sample, and returns what of the source they touch."""
    full, image, scale = levels[0], levels[source.level], source.scale_num / decoder.UNSCALED
    down = _axis(
        view.box_top, view.box_height, image.height / full.height * scale, source.height,
        view.full_height, view.top, False,
    )  # fmt: skip
    across = _axis(
        view.box_left, view.box_width, image.width / full.width * scale, source.width,
        view.full_width, view.left, flip,
    )  # fmt: skip
    rows = resample.fill_taps(down, interpolation, resampler.vertical)
    columns = resample.fill_taps(across, interpolation, resampler.horizontal)
    return resample.Touched(rows, columns)


@kernel
def _read_raw(address, width, y, count, columns, pixels):
    """Rows y and following of a stored RGB image `width` pixels wide -> the first rows of `pixels` (uint32 RGBX)."""
    n = columns.end - columns.begin
    for row in range(count):
        begin = row * width + columns.begin
        line = lanes.values(address + np.uint64(3 * (y * width + begin)), 3 * n)
        target = pixels[begin : begin + n]
        for x in range(n):
            red, green, blue = np.uint32(line[3 * x]), np.uint32(line[3 * x + 1]), np.uint32(line[3 * x + 2])
            target[x] = red | green << np.uint32(8) | blue << np.uint32(16)


@kernel
def _decode_and_resize(handle, address, image, source, luma, touched, work):
    """The stored bytes at `address` -> work.planes. Returns OK or CORRUPT.

    image: the STORED_IMAGE. luma: whether gray is enough. touched: what the resampler needs of the decoded image.
    """
    is_jpg, rows, status = image.mode == JPG, touched.rows, OK
    if is_jpg:
        jpeg = decoder.Jpeg(address, image.size, image.height, image.width)
        region = decoder.Region(source.scale_num, luma, rows, touched.columns)
        status = decoder.begin(handle, jpeg, region, work.pixels)
    elif image.size != 3 * image.height * image.width:
        status = CORRUPT
    y = rows.begin
    while y < rows.end and status == OK:
        n = min(decoder.ROWS_AT_ONCE, rows.end - y)
        if is_jpg:
            status = decoder.rows(handle, work.pixels, source.width, n)
        else:
            _read_raw(address, source.width, y, n, touched.columns, work.pixels)
        resample.take_rows(touched, work.pixels, source.width, y, n, work.resampler, work.planes)
        y += n
    if is_jpg and status == OK:
        status = decoder.end(handle)  # a warning of libjpeg's shows only now
    return status


@kernel
def _transform(handle, levels, params, key, work, out):
    """One sample, given by its levels (STORED_IMAGE [levels]) -> out, uint8 [size, size, 3], with the random numbers of
    `key`. Returns OK or what is wrong with it."""
    full, size = levels[0], work.planes.shape[1]
    view = crops.locate(
        params.crop, full.height, full.width, size, params.scale_low, params.scale_high, params.ratio, key
    )
    flip = rng.uniform(key, rng.FLIP) < params.flip
    source = source_of(view, levels, params.min_oversampling)
    image = levels[source.level]
    address, status = stored_images.fetch(image, work.buffer)
    if status != OK:
        return status
    # A flip costs nothing: it is in the horizontal taps.
    touched = _plan_resize(view, flip, levels, source, params.interpolation, work.resampler)
    # JPEG's luma is not Pillow's gray of the decoded pixels, to a level or two: only where exactness is given up.
    luma = params.min_oversampling > 0.0 and calls.is_gray(params.chain, key)
    status = _decode_and_resize(handle, address, image, source, luma, touched, work)
    if status != OK:
        return status
    calls.apply(params.chain, work.planes, key, work.scratch)
    interleave(work.planes, out)
    return OK


@kernel
def _workspace(table, size, interpolation):
    """Memory for all samples of a table (STORED_IMAGE [samples, levels])."""
    heights, widths = table["height"], table["width"]
    at_once = np.minimum(heights, decoder.ROWS_AT_ONCE) + 16  # sixteen rows more: the resampler reads tiles
    return Workspace(
        np.empty(table["size"].max(), np.uint8),
        np.empty((at_once * widths).max() + 16, np.uint32),
        resample.workspace(max(heights.max(), widths.max()), size, size, interpolation),
        np.empty((3, size, size), np.uint8),
        np.empty(operations.scratch_size(size, size), np.uint8),
    )


@kernel
def transform_samples(ticket, sample_ids, table, seed, params, out, faults):
    """What one thread does of a batch: fills out (uint8 [batch, size, size, 3]) and faults (uint8 [batch]: OK, CORRUPT,
    UNREAD or CHANGED) at the places that its tickets say.

    ticket: int64 [1], shared by the threads. sample_ids: [batch]. table: STORED_IMAGE [batch, levels].
    """
    handle = decoder.open_decoder()
    work = _workspace(table, out.shape[1], params.interpolation)
    i = next_ticket(ticket)
    while i < len(sample_ids):
        faults[i] = _transform(handle, table[i], params, RandomKey(seed, sample_ids[i]), work, out[i])
        i = next_ticket(ticket)
    decoder.close_decoder(handle)


def transform_image(image: np.ndarray, params: TransformParams, *, resolution: int, key: RandomKey) -> np.ndarray:
    """What training would see of `image` (uint8 [height, width, 3]): uint8 [resolution, resolution, 3]."""
    image = np.ascontiguousarray(image)
    ticket, sample_ids = np.zeros(1, np.int64), np.array([key.sample_id])
    out, faults = np.empty((1, resolution, resolution, 3), np.uint8), np.zeros(1, np.uint8)
    transform_samples(ticket, sample_ids, stored_images.in_memory(image), key.seed, params, out, faults)
    return out[0]
