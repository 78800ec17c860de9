"""An item of a source -> the bytes that a .beton stores for it. Runs in the worker processes."""

import functools
import io
import pickle
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from xxhash import xxh64_intdigest

from conversion import jpeg
from conversion.rgb import MAX_PIXELS, limited, limited_size, read_image
from ffcv_ops.errors import UserError

MODES = {"jpg": 0, "raw": 1}  # FFCV's codes
COLOUR = "4:2:0"  # a JPEG's: half as many columns and rows of colour
LEVEL_COLOUR = "4:4:4"  # of smaller levels, whose pixels are hardly reduced any more; docs/data.md has the measurements
ROOM = 16  # rows, and pixels, that `resize` may read behind an image
LEAST_SCALE = 2  # pixels of a JPEG scaled in its decoder per pixel of the result; docs/data.md has the measurements


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

    def __reduce_ex__(self, protocol):
        """The data can be pickled out of band (protocol 5)."""
        return Encoded, (*self[:3], pickle.PickleBuffer(self.data), self.checksum)


class Refused(NamedTuple):
    """Why an item could not be encoded."""

    reason: str


def stored_bytes(sample: tuple[Encoded, ...]) -> int:
    """What a sample takes; a level that equals the one before is stored once."""
    return sum(len(image.data) for image, before in zip(sample, (None, *sample[:-1]), strict=True) if image != before)


def encode_rgb(rgb: np.ndarray, *, mode: str, quality: int, colour: str = COLOUR) -> Encoded:
    """uint8 (height, width, 3), or 4 of which the last does not count -> Encoded. JPEGs have no metadata but the JFIF
    header."""
    height, width, _ = rgb.shape
    data = rgb[..., :3].tobytes() if mode == "raw" else jpeg.encode(rgb, quality=quality, colour=colour)
    return Encoded.of(mode, height, width, data)


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
    Without it such a file, if it is 4:2:0 as what is written, is encoded again from its luma and chroma.
    """
    full, *smaller = levels or (max_side,)
    content = _read(read, item)
    frame = None if isinstance(content, np.ndarray) else jpeg.frame_of(content)
    if frame and frame.height * frame.width > MAX_PIXELS:
        frame = None  # read_image says so
    unchanged = None
    if frame and mode == "jpg":
        size = frame.width, frame.height
        if size == limited_size(*size, max_side=full, min_side=min_side):
            unchanged = _unreduced(content, frame, quality=quality, passthrough=passthrough)
            if unchanged and not smaller:
                return (unchanged,)
    at = _decoded(content, frame, max_side=full, min_side=min_side)
    sample = [unchanged or encode_rgb(at(max_side=full), mode=mode, quality=quality)]
    for side in smaller:
        rgb = at(max_side=side)
        same = rgb.shape[:2] == (sample[-1].height, sample[-1].width)
        sample.append(sample[-1] if same else encode_rgb(rgb, mode=mode, quality=quality, colour=LEVEL_COLOUR))
    return tuple(sample)


def _read(read, item):
    try:
        return read(item)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from None


def _unreduced(data, frame, *, quality, passthrough):
    """A JPEG without a detour by its colours; None where that cannot be."""
    stored = jpeg.image_alone(data, frame) if passthrough else None
    stored = stored or jpeg.encode_again(data, frame, quality=quality)
    return Encoded.of("jpg", frame.height, frame.width, stored) if stored else None


def _decoded(content, frame, *, max_side, min_side):
    """A function that gives the pixels of the image with a longer side of at most its `max_side`, and that is at most
    this one."""
    if isinstance(content, np.ndarray):
        return functools.partial(limited, Image.fromarray(content), min_side=min_side)
    if frame:
        width, _ = limited_size(frame.width, frame.height, max_side=max_side, min_side=min_side)
        eighths = next((k for k in (1, 2, 4) if frame.width * k >= 8 * LEAST_SCALE * width), jpeg.WHOLE)
        height, width = jpeg.scaled(frame, eighths)
        room = np.empty((height + ROOM) * width + ROOM, np.uint32)
        pixels = room[: height * width].view(np.uint8).reshape(height, width, 4)
        if jpeg.decode(content, frame, eighths, pixels):
            return functools.partial(_limited_jpeg, room, pixels, frame, eighths, min_side=min_side)
    return functools.partial(limited, read_image(io.BytesIO(content)), min_side=min_side)


def _limited_jpeg(room, pixels, frame, eighths, *, max_side, min_side):
    """`pixels`, which are those of a JPEG scaled by eighths / 8 and lie in `room`, as `limited` would resize them."""
    width, height = limited_size(frame.width, frame.height, max_side=max_side, min_side=min_side)
    if (height, width) == pixels.shape[:2] and eighths == jpeg.WHOLE:
        return pixels
    from conversion.resize import resize  # Numba takes a second to import, and not every conversion needs it

    out = np.empty((height, width, 3), np.uint8)
    shown = frame.height * eighths / 8, frame.width * eighths / 8  # the decoder rounds up
    resize(room, *pixels.shape[:2], *shown, out)
    return out


def encode_all(encode, items) -> list[tuple[Encoded, ...] | Refused]:
    """What `encode` makes of each item."""
    return [_encode_or_refuse(encode, item) for item in items]


def _encode_or_refuse(encode, item):
    try:
        return encode(item)
    except UserError as refusal:
        return Refused(str(refusal))
