"""An item of a source -> the bytes that a .beton stores for it. Runs in the worker processes."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from conversion.rgb import limited, read_image
from ffcv_ops.errors import BadInput

MODES = {"jpg": 0, "raw": 1}  # FFCV's codes
COLOUR = "4:2:0"  # a JPEG's: half as many columns and rows of colour
LEVEL_COLOUR = "4:4:4"  # of smaller levels, whose pixels are hardly reduced any more; docs/data.md has the measurements


class Encoded(NamedTuple):
    """One stored image. `data` is a JPEG file, or the height * width * 3 RGB bytes."""

    mode: str
    height: int
    width: int
    data: bytes


class Refused(NamedTuple):
    """Why an item could not be encoded."""

    reason: str


def encode_rgb(rgb: np.ndarray, *, mode: str, quality: int, colour: str = COLOUR) -> Encoded:
    """uint8 (height, width, 3) -> Encoded. JPEGs have no metadata but the JFIF header."""
    height, width, _ = rgb.shape
    if mode == "raw":
        return Encoded(mode, height, width, rgb.tobytes())
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality, subsampling=colour)
    return Encoded(mode, height, width, stream.getvalue())


def encode_item(
    item,
    *,
    read: Callable,
    max_side: int | None = None,
    min_side: int | None = None,
    mode: str,
    quality: int,
    levels: tuple[int, ...] | None = None,
) -> tuple[Encoded, ...]:
    """What `read` makes of the item (an image file's bytes, or RGB pixels) as a sample: at one size, or, with `levels`,
    with each of them as the longer side's limit. Every level is reduced from the original; one that reduces nothing is
    the level before."""
    full, *smaller = levels or (max_side,)
    image = _image(_read(read, item))
    rgb = limited(image, max_side=full, min_side=min_side)
    sample = [encode_rgb(rgb, mode=mode, quality=quality)]
    for side in smaller:
        rgb = limited(image, max_side=side, min_side=min_side)
        same = rgb.shape[:2] == (sample[-1].height, sample[-1].width)
        sample.append(sample[-1] if same else encode_rgb(rgb, mode=mode, quality=quality, colour=LEVEL_COLOUR))
    return tuple(sample)


def _read(read, item):
    try:
        return read(item)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}") from None


def _image(content):
    return Image.fromarray(content) if isinstance(content, np.ndarray) else read_image(io.BytesIO(content))


def encode_all(encode, items) -> list[tuple[Encoded, ...] | Refused]:
    """What `encode` makes of each item."""
    return [_encode_or_refuse(encode, item) for item in items]


def _encode_or_refuse(encode, item):
    try:
        return encode(item)
    except BadInput as refusal:
        return Refused(str(refusal))
