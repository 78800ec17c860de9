"""An image file of any format -> RGB uint8 array (height, width, 3), upright, by the rules that docs/data.md lists.

Pillow decodes. A file that is cut short, no image, too large or without a defined white is a `UserError` that says why;
the caller adds the path. Of several frames the first is taken; color profiles are not applied (ImageNet's practice).
"""

import contextlib
import os
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffTags

from conversion import formats
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import Irregular, open_regular

warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged metadata, mostly; none of them names its file
ImageFile.LOAD_TRUNCATED_IMAGES = False
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # bytes of text; Pillow refuses more than 1 MiB
MAX_PIXELS = 100_000_000  # 300 MB as RGB: a file of a few kB can claim to be larger than memory
MAX_SIDE = 65_500  # libjpeg's limit; the .beton's uint16 sides end at 65,535
BACKGROUND = "white"  # what shows through transparent pixels

_TAG_OF = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
_WHITE_IS_ZERO = 0  # TIFF's PhotometricInterpretation
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    if _tiff_tag(image, "PlanarConfiguration", 1) == 2:
        is_eight_bit = {*_tiff_tag(image, "BitsPerSample", (1,))} == {8}
        if not is_eight_bit or _is_white_zero(image) or image.mode in ("LA", "La", "PA"):
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


def to_rgb(image):
    """A loaded Pillow image of any mode as one of mode RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        gray = _eight_bit_gray(image)
        return Image.fromarray(255 - gray if _is_white_zero(image) else gray).convert("RGB")
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, BACKGROUND)
        image = image.convert("LA") if image.mode == "La" else image  # from where alone there is a way to RGBA
        return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bit_gray(image):
    """uint8 of a gray image of more than 8 bits: the nearest of value * 255 / white."""
    gray = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        gray = gray.astype(np.uint32)
        white = 2 ** _tiff_tag(image, "BitsPerSample", (16,))[0] - 1  # 65,535, or 4,095 where a TIFF has 12 bits
        eight = ((gray * 255 + white // 2) // white).astype(np.uint8)
        if "transparency" in image.info:
            eight[gray == image.info["transparency"]] = 255
        return eight
    # 32 bits: the file does not say what white is. The smallest usual range that holds all values.
    low, high = gray.min(), gray.max()
    if gray.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(gray * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(gray).astype(np.uint8)
    if gray.dtype.kind == "i" and low >= 0 and high <= 65_535:
        return ((gray + 128) // 257).astype(np.uint8)
    raise UserError(f"32-bit gray from {low:g} to {high:g} has no defined white; store it as 8 or 16 bit")


def _is_white_zero(image):
    """Whether Pillow has handed out a TIFF's negative. It inverts 8 bits and less, but not more."""
    return _tiff_tag(image, "PhotometricInterpretation", None) == _WHITE_IS_ZERO


def _tiff_tag(image, name, default):
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return tags.get(_TAG_OF[name], default)


def upright(image, original):
    """`image` turned as the EXIF orientation of `original` asks; orientations outside 1 to 8 ask for nothing."""
    turn = _UPRIGHT.get(original.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


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
