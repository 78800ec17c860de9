"""The same views by other people's code: Pillow, torchvision and timm, given our draws.

For `preview --compare`: what a crop, flip or operation does to pixels is theirs alone; which of them, where and how
strongly are the numbers that our pipeline drew. Random erasing is left out: its noise is ours.
"""

import itertools

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from ffcv_ops import operations, policies, rng
from ffcv_ops.kernels import crops, resample
from ffcv_ops.rng import RandomKey
from ffcv_ops.transform import TransformParams

_MODES = {resample.BICUBIC: InterpolationMode.BICUBIC, resample.BILINEAR: InterpolationMode.BILINEAR}
_RESAMPLING = {resample.BICUBIC: Image.Resampling.BICUBIC, resample.BILINEAR: Image.Resampling.BILINEAR}
_NAMES = {
    "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "Posterize", "solarize": "Solarize", "solarize_add": "SolarizeAdd", "color": "Color",
    "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness", "shear_x": "ShearX",
    "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY", "identity": "Identity",
}  # fmt: skip
_ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")


def show(image: np.ndarray, *, plan: TransformParams, resolution: int, key: RandomKey) -> np.ndarray:
    """`transform_image` by the other code: uint8 [height, width, 3] -> uint8 [resolution, resolution, 3]."""
    view = cropped(Image.fromarray(image), plan, resolution, key)
    if rng.uniform(key, rng.FLIP) < plan.flip:
        view = F.hflip(view)
    return np.asarray(augmented(view, plan, key))


def cropped(image: Image.Image, plan: TransformParams, size: int, key: RandomKey) -> Image.Image:
    mode = _MODES[plan.interpolation]
    if plan.crop == crops.CENTER:
        return F.center_crop(F.resize(image, int(size / plan.ratio), mode), size)
    width, height = image.size
    view = crops.locate(plan.crop, height, width, size, plan.scale_low, plan.scale_high, plan.ratio, key)
    if plan.crop == crops.RRC:
        box = (view.box_top, view.box_left, view.box_height, view.box_width)
        return F.resized_crop(image, *box, [size, size], mode)
    padded = F.pad(F.resize(image, size, mode), crops.SRC_PADDING, padding_mode="reflect")
    return F.crop(padded, view.top + crops.SRC_PADDING, view.left + crops.SRC_PADDING, size, size)


def augmented(image: Image.Image, plan: TransformParams, key: RandomKey) -> Image.Image:
    if plan.augment == policies.THREE:
        op = policies.three_choice(plan.three_ops, key)
        if op == policies.GRAY:
            image = F.to_grayscale(image, num_output_channels=3)
        elif op == policies.SOLARIZE:
            image = ImageOps.solarize(image)
        else:
            image = image.filter(ImageFilter.GaussianBlur(policies.three_sigma(key)))
    for layer in range(policies.layers(plan.augment, plan.rand)):
        width, height = image.size
        op, value = policies.choose(plan.augment, plan.rand, layer, height, width, key)
        run = _by_torchvision if plan.augment == policies.TRIVIAL else _by_timm
        image = run(image, _NAMES[operations.NAMES[op]], value, _RESAMPLING[plan.interpolation])
    if plan.jitter:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
        orders = list(itertools.permutations(range(3)))
        for which in orders[rng.uniform_int(key, rng.JITTER_ORDER, 6)]:
            image = adjust[which](image, policies.jitter_factor(plan.jitter, which, key))
    return image


def _by_timm(image, name, value, resampling):
    """One of timm's operations with our argument."""
    if name == "Identity":
        return image
    if name == "Posterize" and value < 1:
        return Image.new("RGB", image.size)  # what Pillow did before it refused to keep no bits
    if name in ("AutoContrast", "Equalize", "Invert"):
        return auto_augment.NAME_TO_OP[name](image)
    value = int(value) if name in ("Posterize", "Solarize", "SolarizeAdd") else value
    geometric = name == "Rotate" or name[-1] in "XY"
    how = {"resample": resampling, "fillcolor": policies.MEAN_COLOUR} if geometric else {}
    return auto_augment.NAME_TO_OP[name](image, value, **how)


def _by_torchvision(image, name, value, _):
    """One of TrivialAugment's operations; torchvision counts enhancements from 0 and translates the other way."""
    strength = value - 1 if name in _ENHANCEMENTS else -value if name.startswith("Translate") else value
    return _apply_op(image, name, strength, interpolation=InterpolationMode.NEAREST, fill=None)
