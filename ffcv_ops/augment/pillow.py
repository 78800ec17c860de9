"""Rows of operations by other people's code, timm's and torchvision's, on Pillow images: ours is held against it."""

from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from ffcv_ops.augment import operations
from ffcv_ops.kernels import resample

_RESAMPLING = {resample.BICUBIC: Image.Resampling.BICUBIC, resample.BILINEAR: Image.Resampling.BILINEAR}
_ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")


def _name(op):
    """timm's and torchvision's name of an operation: solarize_add -> SolarizeAdd."""
    name = "".join(word.capitalize() for word in operations.NAMES[op].split("_"))
    return "AutoContrast" if name == "Autocontrast" else name


def by_timm(image, row, interpolation):
    """timm's operations with our arguments."""
    for op, value in row:
        name = _name(op)
        if name == "Posterize" and value < 1:
            image = Image.new("RGB", image.size)  # what Pillow did before it refused to keep no bits
        elif name in ("AutoContrast", "Equalize", "Invert"):
            image = auto_augment.NAME_TO_OP[name](image)
        elif name != "Identity":
            value = int(value) if name in ("Posterize", "Solarize", "SolarizeAdd") else value
            geometric = name == "Rotate" or name[-1] in "XY"
            how = {"resample": _RESAMPLING[interpolation], "fillcolor": operations.MEAN_COLOR} if geometric else {}
            image = auto_augment.NAME_TO_OP[name](image, value, **how)
    return image


def by_torchvision(image, row):
    """TrivialAugment's operations; torchvision counts enhancements from 0 and translates the other way."""
    for op, value in row:
        name = _name(op)
        strength = value - 1 if name in _ENHANCEMENTS else -value if name.startswith("Translate") else value
        image = _apply_op(image, name, strength, interpolation=InterpolationMode.NEAREST, fill=None)
    return image
