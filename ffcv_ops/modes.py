"""A Pillow image of any mode as RGB, and upright, by the rules that docs/data.md lists."""

import numpy as np
from PIL import ExifTags, Image, TiffTags

from ffcv_ops.errors import UserError

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


def to_rgb(image):
    """A loaded Pillow image of any mode as one of mode RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        gray = _eight_bit_gray(image)
        return Image.fromarray(255 - gray if is_white_zero(image) else gray).convert("RGB")
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
        white = 2 ** tiff_tag(image, "BitsPerSample", (16,))[0] - 1  # 65,535, or 4,095 where a TIFF has 12 bits
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


def is_white_zero(image) -> bool:
    """Whether Pillow has handed out a TIFF's negative. It inverts 8 bits and less, but not more."""
    return tiff_tag(image, "PhotometricInterpretation", None) == _WHITE_IS_ZERO


def tiff_tag(image, name, default):
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return tags.get(_TAG_OF[name], default)


def upright(image, original):
    """`image` turned as the EXIF orientation of `original` asks; orientations outside 1 to 8 ask for nothing."""
    turn = _UPRIGHT.get(original.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)
