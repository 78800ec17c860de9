"""The same views by other people's code: Pillow, torchvision and timm, given our random numbers.

For `preview --compare`: what a crop, flip or operation does to pixels is theirs alone; which of them, where and how
strongly are the numbers that our pipeline drew. Each augmentation declares its reference, if there is one.
"""

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from config.parser import part_of
from ffcv_ops import rng
from ffcv_ops.augment import load
from ffcv_ops.kernels import crops, resample
from ffcv_ops.rng import RandomKey
from ffcv_ops.transform import TransformParams

_MODES = {resample.BICUBIC: InterpolationMode.BICUBIC, resample.BILINEAR: InterpolationMode.BILINEAR}


def show(image: np.ndarray, params: TransformParams, loaded, *, resolution: int, key: RandomKey) -> np.ndarray:
    """`transform_image` by the other code: uint8 [height, width, 3] -> uint8 [resolution, resolution, 3].

    loaded: the augmentations of `params`, as `load.from_text` gives them.
    """
    view = cropped(Image.fromarray(image), params, resolution, key)
    if rng.uniform(key, rng.FLIP) < params.flip:
        view = F.hflip(view)
    return np.asarray(load.reference(loaded, params.interpolation, view, key))


def cropped(image: Image.Image, params: TransformParams, size: int, key: RandomKey) -> Image.Image:
    mode = _MODES[params.interpolation]
    if params.crop == crops.CENTER:
        return F.center_crop(resized(image, int(size / params.ratio), mode), size)
    width, height = image.size
    view = crops.locate(params.crop, height, width, size, params.scale_low, params.scale_high, params.ratio, key)
    if params.crop == crops.RRC:
        box = (view.box_top, view.box_left, view.box_height, view.box_width)
        return resized(F.crop(image, *box), [size, size], mode)
    padded = F.pad(resized(image, size, mode), crops.SRC_PADDING, padding_mode="reflect")
    return F.crop(padded, view.top + crops.SRC_PADDING, view.left + crops.SRC_PADDING, size, size)


def resized(image, size, mode):
    """torchvision's resize, one axis at a time: horizontally first, as every Pillow before 13 does by itself."""
    width, height = F.resize(image, size, mode).size
    return F.resize(F.resize(image, [image.height, width], mode), [height, width], mode)


if __name__ == "__main__":
    part_of("python -m tools.preview --compare")
