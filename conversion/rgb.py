"""An image file of any format -> RGB uint8 array (height, width, 3), upright, by the rules that docs/data.md lists.

Pillow decodes. A file that is cut short, no image, too large or without a defined white is a `UserError` that says why;
the caller adds the path. Of several frames the first is taken; color profiles are not applied (ImageNet's practice).
"""

import contextlib
import os
import warnings

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from conversion import formats
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import Irregular, open_regular
from ffcv_ops.modes import is_white_zero, tiff_tag, to_rgb, upright

warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged metadata, mostly; none of them names its file
ImageFile.LOAD_TRUNCATED_IMAGES = False
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # bytes of text; Pillow refuses more than 1 MiB
MAX_PIXELS = 100_000_000  # 300 MB as RGB: a file of a few kB can claim to be larger than memory
MAX_SIDE = 65_500  # libjpeg's limit; the .beton's uint16 sides end at 65,535


def read_rgb(file, *, max_side: int | None = None, min_side: int | None = None) -> np.ndarray:
    """The image in `file` (a path or a binary stream), its sides limited as `limited_size` says."""
    return limited(read_image(file), max_side=max_side, min_side=min_side)


def read_image(file) -> Image.Image:
    """The image in `file` at its own size, as a Pillow image of mode RGB.

    Whatever Pillow's many decoders raise on a damaged file becomes `UserError`; running out of memory does not.
    """
    try:
        opened = open_regular(file) if isinstance(file, str | os.PathLike) else contextlib.nullcontext(file)
        with opened as stream, Image.open(stream, formats=formats.FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} of one image")
            if fault := _decoded_wrongly(image):
                raise UserError(f"{fault}, which Pillow decodes to other pixels; store it in another way")
            image.load()
            return upright(to_rgb(image), image)
    except Irregular as fault:
        raise UserError(fault.reason) from None
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(_reason(error)) from None


def _decoded_wrongly(image) -> str | None:
    """What kind of image this opened one is, where Pillow shows other pixels than it means, without a word."""
    if image.format == "PNG" and "transparency" in image.info and image.tile[0].args == "RGB;16B":
        return "has 16-bit colors of which one is transparent"
    if tiff_tag(image, "PlanarConfiguration", 1) == 2:
        is_eight_bit = {*tiff_tag(image, "BitsPerSample", (1,))} == {8}
        if not is_eight_bit or is_white_zero(image) or image.mode in ("LA", "La", "PA"):
            return "has channels one behind the other, and not just gray or color of 8 bits"
    return None


def limited(image: Image.Image, *, max_side: int | None = None, min_side: int | None = None) -> np.ndarray:
    """The pixels of an RGB image after an antialiased bicubic reduction to the size that `limited_size` says.

    One axis at a time: left alone, Pillow 13 takes them in another order than the versions before it and our kernels.
    """
    size = limited_size(*image.size, max_side=max_side, min_side=min_side)
    if size != image.size:
        image = image.resize((size[0], image.height), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def limited_size(width, height, *, max_side=None, min_side=None):
    """(width, height) reduced in proportion so that the longer side is at most `max_side` and the shorter side at most
    `min_side` (None: no limit); never enlarged, never below 1. Longer than MAX_SIDE is a `UserError`."""
    scale = 1.0
    if max_side is not None:
        scale = min(scale, max_side / max(width, height))
    if min_side is not None:
        scale = min(scale, min_side / min(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if max(size) > MAX_SIDE:
        raise UserError(f"{size[0]} x {size[1]} pixels: a side may have {MAX_SIDE} at most; set image.max_side")
    return size


def _reason(error):
    """What Pillow, or the operating system below it, found wrong."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"is not an image (known formats: {formats.NAMES})"
    return f"cannot be decoded: {one_line(' '.join(str(error).split())) or type(error).__name__}"
