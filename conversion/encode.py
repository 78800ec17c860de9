"""An RGB array or an image file -> the bytes that a .beton stores for it. Runs in the worker processes."""

import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from conversion.rgb import read_rgb
from ffcv_ops.errors import BadInput

MODES = {"jpg": 0, "raw": 1}  # FFCV's codes


class Encoded(NamedTuple):
    """One stored image. `data` is a JPEG file, or the height * width * 3 RGB bytes."""

    mode: str
    height: int
    width: int
    data: bytes


class Refused(NamedTuple):
    """Why an item could not be encoded."""

    reason: str


def encode_rgb(rgb: np.ndarray, *, mode: str, quality: int) -> Encoded:
    """uint8 (height, width, 3) -> Encoded. JPEGs have 4:2:0 colour and no metadata but the JFIF header."""
    height, width, _ = rgb.shape
    if mode == "raw":
        return Encoded(mode, height, width, rgb.tobytes())
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return Encoded(mode, height, width, stream.getvalue())


def encode_file(
    name: str, *, root: str, max_side: int | None, min_side: int | None, mode: str, quality: int
) -> Encoded:
    """The image file `name` below `root`, its sides limited, encoded."""
    rgb = read_rgb(os.path.join(root, name), max_side=max_side, min_side=min_side)
    return encode_rgb(rgb, mode=mode, quality=quality)


def encode_all(encode, items) -> list[Encoded | Refused]:
    """What `encode` makes of each item."""
    return [_encode_or_refuse(encode, item) for item in items]


def _encode_or_refuse(encode, item):
    try:
        return encode(item)
    except BadInput as refusal:
        return Refused(str(refusal))
