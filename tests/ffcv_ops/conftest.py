"""The zoo's reference: RandAugment and AutoAugment by timm's operations, TrivialAugment by torchvision's, on Pillow."""

from unittest import mock

import pytest
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from ffcv_ops import autoaugment, draws, operations, policies, randaugment

_TIMM = {
    "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "Posterize", "solarize": "Solarize", "solarize_add": "SolarizeAdd", "color": "Color",
    "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness", "shear_x": "ShearX",
    "shear_y": "ShearY", "translate_x": "TranslateXRel", "translate_y": "TranslateYRel",
}  # fmt: skip
_INCREASING = ("posterize", "solarize", "color", "contrast", "brightness", "sharpness")


def _timm_name(op, law):
    """timm's name of our operation number `op` under a law of strength."""
    name = operations.NAMES[op]
    if law == operations.INCREASING and name in _INCREASING:
        return _TIMM[name] + "Increasing"
    if law == operations.PAPER and name == "posterize":
        return "PosterizeOriginal"
    return _TIMM[name]


def _timm_operation(image, op, law, magnitude, negative, interpolation=Image.Resampling.BICUBIC):
    """What timm makes of a Pillow image, as create_transform configures it."""
    hparams = {"img_mean": (124, 116, 104), "interpolation": interpolation}
    operation = auto_augment.AugmentOp(_timm_name(op, law), prob=1.0, magnitude=magnitude, hparams=hparams)
    if operation.name.startswith("Posterize") and operation.level_fn(magnitude, hparams)[0] == 0:
        return Image.new("RGB", image.size)  # what Pillow did before it refused to keep no bits
    with mock.patch.object(auto_augment, "_randomly_negate", lambda value: -value if negative else value):
        return operation(image)


def _row(augment, rand, seed, draw):
    """(operation, law, magnitude, negative) of each layer that is applied, from our draws."""
    if augment == policies.RAND:
        for layer in range(rand.layers):
            slot = draws.LAYER + 8 * layer
            if draws.uniform(seed, draw, slot + 1) < rand.probability:
                op = draws.uniform_int(seed, draw, slot, 15)
                strength = randaugment.magnitude(rand, seed, draw, layer)
                yield op, rand.law, strength, draws.uniform(seed, draw, slot + 4) < 0.5
    else:
        original = augment == policies.AUTO_ORIGINAL
        pairs = autoaugment.POLICIES[0 if original else 1]
        for layer, (op, probability, magnitude) in enumerate(pairs[draws.uniform_int(seed, draw, draws.CHOICE, 25)]):
            slot = draws.LAYER + 8 * layer
            if draws.uniform(seed, draw, slot + 1) < probability:
                law = operations.PAPER if original else operations.PLAIN
                yield int(op), law, magnitude, draws.uniform(seed, draw, slot + 4) < 0.5


def _trivial(image, seed, draw):
    space = list(TrivialAugmentWide()._augmentation_space(31).items())
    name, (strengths, signed) = space[draws.uniform_int(seed, draw, draws.CHOICE, 14)]
    strength = 0.0
    if strengths.ndim:
        strength = float(strengths[draws.uniform_int(seed, draw, draws.LAYER + 2, 31)])
    if signed and draws.uniform(seed, draw, draws.LAYER + 4) < 0.5:
        strength = -strength
    return _apply_op(image, name, strength, interpolation=InterpolationMode.NEAREST, fill=None)


def _pillow_zoo(image, augment, rand, seed, draw, interpolation=Image.Resampling.BICUBIC):
    """The whole policy on a Pillow image, given our draws."""
    if augment == policies.TRIVIAL:
        return _trivial(image, seed, draw)
    for op, law, magnitude, negative in _row(augment, rand, seed, draw):
        image = _timm_operation(image, op, law, magnitude, negative, interpolation)
    return image


@pytest.fixture(scope="session")
def timm_name():
    return _timm_name


@pytest.fixture(scope="session")
def timm_operation():
    return _timm_operation


@pytest.fixture(scope="session")
def pillow_zoo():
    return _pillow_zoo
