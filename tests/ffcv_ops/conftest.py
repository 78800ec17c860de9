"""The zoo's reference: RandAugment and AutoAugment by timm's operations, TrivialAugment by torchvision's, on Pillow.
And .beton files with all that belongs to them, whole and in shards."""

import json
from unittest import mock

import numpy as np
import pytest
import xxhash
from ffcv.reader import Reader
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from conversion import beton
from conversion.encode import encode_rgb
from ffcv_ops import rng
from ffcv_ops.augment import chain, operations
from ffcv_ops.augment.policies import autoaugment, randaugment

_TIMM = {
    "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "Posterize", "solarize": "Solarize", "solarize_add": "SolarizeAdd", "color": "Color",
    "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness", "shear_x": "ShearX",
    "shear_y": "ShearY", "translate_x": "TranslateXRel", "translate_y": "TranslateYRel",
}  # fmt: skip
_INCREASING = ("posterize", "solarize", "color", "contrast", "brightness", "sharpness")


def _timm_name(op, scale):
    """timm's name of our operation number `op` on a scale of strength."""
    name = operations.NAMES[op]
    if scale == operations.INCREASING and name in _INCREASING:
        return _TIMM[name] + "Increasing"
    if scale == operations.PAPER and name == "posterize":
        return "PosterizeOriginal"
    return _TIMM[name]


def _timm_operation(image, op, scale, magnitude, negative, interpolation=Image.Resampling.BICUBIC):
    """What timm makes of a Pillow image, as create_transform configures it."""
    hparams = {"img_mean": (124, 116, 104), "interpolation": interpolation}
    operation = auto_augment.AugmentOp(_timm_name(op, scale), prob=1.0, magnitude=magnitude, hparams=hparams)
    if operation.name.startswith("Posterize") and operation.level_fn(magnitude, hparams)[0] == 0:
        return Image.new("RGB", image.size)  # what Pillow did before it refused to keep no bits
    with mock.patch.object(auto_augment, "_randomly_negate", lambda value: -value if negative else value):
        return operation(image)


def _row(step, key):
    """(operation, scale, magnitude, negative) of each layer that is applied, from our random numbers."""
    if step.name == "rand":
        rand = randaugment.parse(dict(step.options)["config"])
        for layer in range(rand.layers):
            stream = rng.LAYER + 8 * layer
            if rng.uniform(key, stream + 1) < rand.probability:
                op = rng.uniform_int(key, stream, 15)
                strength = randaugment.magnitude(rand, key, layer)
                yield op, rand.scale, strength, rng.uniform(key, stream + 4) < 0.5
    else:
        original = step.name == "auto-original"
        pairs = autoaugment.POLICIES[0 if original else 1]
        for layer, (op, probability, magnitude) in enumerate(pairs[rng.uniform_int(key, rng.CHOICE, 25)]):
            stream = rng.LAYER + 8 * layer
            if rng.uniform(key, stream + 1) < probability:
                scale = operations.PAPER if original else operations.PLAIN
                yield int(op), scale, magnitude, rng.uniform(key, stream + 4) < 0.5


def _trivial(image, key):
    space = list(TrivialAugmentWide()._augmentation_space(31).items())
    name, (strengths, signed) = space[rng.uniform_int(key, rng.CHOICE, 14)]
    strength = 0.0
    if strengths.ndim:
        strength = float(strengths[rng.uniform_int(key, rng.LAYER + 2, 31)])
    if signed and rng.uniform(key, rng.LAYER + 4) < 0.5:
        strength = -strength
    return _apply_op(image, name, strength, interpolation=InterpolationMode.NEAREST, fill=None)


def _pillow_zoo(image, text, key, interpolation=Image.Resampling.BICUBIC):
    """The whole policy on a Pillow image, given our random numbers. text: the recipe's, `rand(rand-m9)`."""
    (step,) = chain.parse(text)
    if step.name == "trivial":
        return _trivial(image, key)
    for op, scale, magnitude, negative in _row(step, key):
        image = _timm_operation(image, op, scale, magnitude, negative, interpolation)
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


def _write_beton(path, samples, *, page_size=2**21, names=None, **said):
    """`samples` [((Encoded, ...), label), ...] as a .beton with all that write_datasets.py puts beside it."""
    levels = len(samples[0][0])
    images = ("image", "image_48", "image_24")[:levels]
    _, checksums = beton.write(path, samples, capacity=len(samples), page_size=page_size, images=images)
    path.with_suffix(".xxh64").write_bytes(checksums.tobytes())
    said = {
        "format": 2, "bytes": path.stat().st_size, "index_xxh64": beton.index_checksum(path), "split": "train",
        "checksums_xxh64": xxhash.xxh64_hexdigest(checksums.tobytes()), "classes": list("abcde"), "shard": 0,
        "shards": 1, **said,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(said))
    names = names or [f"{path.stem}/{number}.jpg" for number in range(len(samples))]
    path.with_suffix(".files.txt").write_text("".join(f"{name}\n" for name in names))
    return path


@pytest.fixture(scope="session")
def write_beton():
    return _write_beton


@pytest.fixture(scope="session")
def write_shards():
    """write_shards(folder, samples, counts) -> the pattern of so many shards, of `counts` samples each."""

    def write_shards(folder, samples, counts, **options):
        begin = 0
        for number, count in enumerate(counts):
            path = folder / f"x_train-{number:05}-of-{len(counts):05}.beton"
            _write_beton(path, samples[begin : begin + count], shard=number, shards=len(counts), **options)
            begin += count
        return folder / "x_train-*.beton"

    return write_shards


@pytest.fixture(scope="session")
def encoded(tiles):
    """The tiles as samples of `write_beton`: JPEGs, labels index % 5."""
    return [((encode_rgb(tile, mode="jpg", quality=90),), number % 5) for number, tile in enumerate(tiles)]


@pytest.fixture(scope="session")
def encoded_levels(tiles):
    """The tiles as pyramids of three levels."""

    def levels(tile):
        image = Image.fromarray(tile)
        smaller = [np.asarray(image.resize((image.width * k // 4, image.height * k // 4))) for k in (2, 1)]
        return tuple(encode_rgb(pixels, mode="jpg", quality=90) for pixels in (tile, *smaller))

    return [(levels(tile), number % 5) for number, tile in enumerate(tiles)]


@pytest.fixture
def flip_bit():
    """flip_bit(path, sample, bit): damages a stored full-size image in place; returns the path."""

    def flip_bit(path, sample, bit=None):
        reader = Reader(str(path))
        place = int(reader.metadata["f0"]["data_ptr"][sample])
        size = int(reader.alloc_table["size"][reader.alloc_table["ptr"] == place][0])
        bit = 4 * size if bit is None else bit
        with open(path, "r+b") as file:
            file.seek(place + bit // 8)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1 << bit % 8]))
        return path

    return flip_bit
