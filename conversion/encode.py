"""An item of a source -> the bytes that a .beton stores for it. Runs in the worker processes."""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from xxhash import xxh64_intdigest

from config.options import option
from conversion import jpeg
from conversion.rgb import MAX_PIXELS, limited, limited_size, read_image
from ffcv_ops.errors import UserError
from ffcv_ops.jpeg.turbojpeg import UNSCALED

MODES = {"jpg": 0, "raw": 1}  # FFCV's codes
SUBSAMPLING = "4:2:0"  # of a JPEG: half as many columns and rows of chroma
LEVEL_SUBSAMPLING = "4:4:4"  # of smaller levels, which training hardly reduces; docs/data.md has the measurements
PADDING = 16  # rows, and pixels, that `resize` may read behind an image
MIN_OVERSAMPLING = 2  # pixels decoded per pixel of the result, where libjpeg scales; docs/data.md has the measurements


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How an image is stored; photos keep their size."""

    max_side: int | None = option("longer side at most this (pixels)", low=1, high=65500, default=500)
    levels: tuple[int, ...] | None = option(
        "a pyramid: each image at several sizes, limits as max_side is: 500,256,160", low=1, high=65500, default=None
    )
    min_side: int | None = option("shorter side at most this (pixels)", low=1, high=65500, default=None)
    quality: int = option("of JPEG", low=1, high=100, default=90)
    passthrough: bool = option("a JPEG that is within the limits is stored as it is", default=True)
    mode: Literal["jpg", "raw"] = option("JPEG, or RGB bytes", default="jpg")


class ReadError(UserError):
    """The source does not give an item's bytes: the disk, the network or the file is at fault, not the image."""


class Encoded(NamedTuple):
    """One stored image. `data` is a JPEG file, or the height * width * 3 RGB bytes; `checksum` its XXH64."""

    mode: str
    height: int
    width: int
    data: bytes
    checksum: int

    @classmethod
    def of(cls, mode: str, height: int, width: int, data: bytes):
        return cls(mode, height, width, data, xxh64_intdigest(data))


class Refused(NamedTuple):
    """Why an item could not be encoded. unreadable: by a ReadError, so that other items may be as good as lost."""

    reason: str
    unreadable: bool = False


def stored_images(sample: tuple[Encoded, ...]) -> list[Encoded]:
    """The images of a sample that take room: a level that equals the one before is stored once."""
    pairs = zip(sample, (None, *sample[:-1]), strict=True)
    return [image for image, previous in pairs if image != previous]


def encode_rgb(rgb: np.ndarray, *, mode: str, quality: int, subsampling: str = SUBSAMPLING) -> Encoded:
    """uint8 (height, width, 3), or 4 of which the last is ignored -> Encoded. JPEGs have no metadata but the JFIF
    header."""
    height, width, _ = rgb.shape
    data = rgb[..., :3].tobytes() if mode == "raw" else jpeg.encode(rgb, quality=quality, subsampling=subsampling)
    return Encoded.of(mode, height, width, data)


def encode_item(item, *, read: Callable, image: ImageConfig) -> tuple[Encoded, ...]:
    """The item as a sample: one image, or one for each of `image.levels`. `read` gives an image file's bytes, or RGB
    pixels. A `UserError` where the item cannot be stored, a `ReadError` where it cannot be read."""
    full, *smaller = image.levels or (image.max_side,)
    content = _read(read, item)
    frame = None if isinstance(content, np.ndarray) else jpeg.frame_of(content)
    if frame and frame.height * frame.width > MAX_PIXELS:
        frame = None  # read_image refuses it with a reason
    unchanged = None
    if frame and image.mode == "jpg":
        size = frame.width, frame.height
        if size == limited_size(*size, max_side=full, min_side=image.min_side):
            unchanged = _without_decoding(content, frame, image)
            if unchanged and not smaller:
                return (unchanged,)
    # Every level is reduced from the original, not from the level before, whose JPEG has lost something.
    at = _decoded(content, frame, max_side=full, min_side=image.min_side)
    sample = [unchanged or encode_rgb(at(max_side=full), mode=image.mode, quality=image.quality)]
    for side in smaller:
        rgb = at(max_side=side)
        if rgb.shape[:2] == (sample[-1].height, sample[-1].width):
            sample.append(sample[-1])
        else:
            options = {"mode": image.mode, "quality": image.quality, "subsampling": LEVEL_SUBSAMPLING}
            sample.append(encode_rgb(rgb, **options))
    return tuple(sample)


def _read(read, item):
    try:
        return read(item)
    except OSError as error:
        kind = UserError if error.errno is None else ReadError  # without a number it is Pillow's, about the image
        raise kind(f"cannot be read: {error.strerror or error}") from None


def _without_decoding(data, frame, image):
    """A JPEG within the limits, without a detour by RGB; None where that cannot be."""
    stored = jpeg.image_alone(data, frame) if image.passthrough else None
    stored = stored or jpeg.encode_again(data, frame, quality=image.quality)
    return Encoded.of("jpg", frame.height, frame.width, stored) if stored else None


def _decoded(content, frame, *, max_side, min_side):
    """A function of a `max_side`, which is at most this one: the image's pixels within that limit."""
    if isinstance(content, np.ndarray):
        return functools.partial(limited, Image.fromarray(content), min_side=min_side)
    if frame:
        width, _ = limited_size(frame.width, frame.height, max_side=max_side, min_side=min_side)
        scales = (1, 2, 4)  # libjpeg's decoder scales by these eighths, in a fraction of the time
        enough = 8 * MIN_OVERSAMPLING * width
        scale_num = next((scale for scale in scales if frame.width * scale >= enough), UNSCALED)
        height, width = jpeg.scaled(frame, scale_num)
        buffer = np.empty((height + PADDING) * width + PADDING, np.uint32)
        pixels = buffer[: height * width].view(np.uint8).reshape(height, width, 4)
        if jpeg.decode(content, frame, scale_num, pixels):
            return functools.partial(_limited_jpeg, buffer, pixels, frame, scale_num, min_side=min_side)
    return functools.partial(limited, read_image(io.BytesIO(content)), min_side=min_side)


def _limited_jpeg(buffer, pixels, frame, scale_num, *, max_side, min_side):
    """The pixels of a JPEG within the limits, as `limited` gives them. `pixels`, uint8 (height, width, 4), are the
    image scaled by scale_num / 8, and lie at the start of `buffer`."""
    width, height = limited_size(frame.width, frame.height, max_side=max_side, min_side=min_side)
    if (height, width) == pixels.shape[:2] and scale_num == UNSCALED:
        return pixels
    from conversion.resize import resize  # Numba takes a second to import, and not every conversion needs it

    out = np.empty((height, width, 3), np.uint8)
    box = frame.height * scale_num / 8, frame.width * scale_num / 8  # the decoder has rounded up
    resize(buffer, *pixels.shape[:2], *box, out)
    return out


def encode_or_refuse(encode, item) -> tuple[Encoded, ...] | Refused:
    try:
        return encode(item)
    except UserError as refusal:
        return Refused(str(refusal), isinstance(refusal, ReadError))
