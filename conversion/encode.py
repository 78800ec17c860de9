"""An item of a source -> the bytes that a .beton stores for it. Runs in the worker processes."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from conversion import jpeg
from conversion.rgb import MAX_PIXELS, limited_size, read_image, resized
from ffcv_ops.errors import BadInput

MODES = {"jpg": 0, "raw": 1}  # FFCV's codes
COLOUR = "4:2:0"  # a JPEG's: half as many columns and rows of colour
LEVEL_COLOUR = "4:4:4"  # of smaller levels, whose pixels are hardly reduced any more; docs/data.md has the measurements
LEAST_SCALE = 2  # pixels of a JPEG scaled in its decoder per pixel of the result; docs/data.md has the measurements


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
    return Encoded(
        mode, height, width, rgb.tobytes() if mode == "raw" else jpeg.encode(rgb, quality=quality, colour=colour)
    )


def encode_item(
    item,
    *,
    read: Callable,
    max_side: int | None = None,
    min_side: int | None = None,
    mode: str,
    quality: int,
    passthrough: bool = True,
    levels: tuple[int, ...] | None = None,
) -> tuple[Encoded, ...]:
    """What `read` makes of the item (an image file's bytes, or RGB pixels) as a sample: at one size, or, with `levels`,
    with each of them as the longer side's limit. Every level is reduced from the original; one that reduces nothing is
    the level before.

    passthrough: the first level of a JPEG file that any decoder takes and that is within the limits is the file itself.
    """
    full, *smaller = levels or (max_side,)
    content = _read(read, item)
    frame = None if isinstance(content, np.ndarray) else jpeg.frame_of(content)
    itself = None
    if frame and passthrough and mode == "jpg":
        itself = _itself(content, frame, max_side=full, min_side=min_side)
        if itself and not smaller:
            return (itself,)
    picture = _picture(content, frame, max_side=full, min_side=min_side)
    sample = [itself or encode_rgb(picture.limited(full, min_side), mode=mode, quality=quality)]
    for side in smaller:
        rgb = picture.limited(side, min_side)
        same = rgb.shape[:2] == (sample[-1].height, sample[-1].width)
        sample.append(sample[-1] if same else encode_rgb(rgb, mode=mode, quality=quality, colour=LEVEL_COLOUR))
    return tuple(sample)


class Picture(NamedTuple):
    """A decoded image: (width, height) of the original, and what of `image`, which may be smaller, shows it."""

    image: Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    def limited(self, max_side, min_side):
        return resized(self.image, limited_size(*self.size, max_side=max_side, min_side=min_side), self.box)


def _read(read, item):
    try:
        return read(item)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}") from None


def _itself(data, frame, *, max_side, min_side):
    """The file as it is, up to its end of image, where nothing need be done to it; else None."""
    size = frame.width, frame.height
    if not frame.end or size != limited_size(*size, max_side=max_side, min_side=min_side):
        return None
    data = data[: frame.end]
    return Encoded("jpg", frame.height, frame.width, data) if jpeg.is_sound(data, frame) else None


def _picture(content, frame, *, max_side, min_side):
    """An RGB image; of a JPEG much larger than the limits, a half, quarter or eighth of it, which is decoded sooner."""
    if frame and frame.height * frame.width <= MAX_PIXELS:
        size = frame.width, frame.height
        width, _ = limited_size(*size, max_side=max_side, min_side=min_side)
        eighths = next((k for k in (1, 2, 4) if frame.width * k >= 8 * LEAST_SCALE * width), 8)
        pixels = jpeg.decode(content, frame, eighths)
        if pixels is not None:
            shown = (side * eighths / 8 for side in size)  # the decoder rounds up
            return Picture(Image.fromarray(pixels), size, (0, 0, *shown))
    image = Image.fromarray(content) if isinstance(content, np.ndarray) else read_image(io.BytesIO(content))
    return Picture(image, image.size, (0, 0, *image.size))


def encode_all(encode, items) -> list[tuple[Encoded, ...] | Refused]:
    """What `encode` makes of each item."""
    return [_encode_or_refuse(encode, item) for item in items]


def _encode_or_refuse(encode, item):
    try:
        return encode(item)
    except BadInput as refusal:
        return Refused(str(refusal))
