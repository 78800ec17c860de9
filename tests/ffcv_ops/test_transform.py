"""The fused operation against the official transform composed of Pillow calls, given the same draws: equal."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from ffcv_ops import rng
from ffcv_ops.augment import chain, load
from ffcv_ops.augment.policies import random_erasing
from ffcv_ops.kernels import crops, resample
from ffcv_ops.rng import RandomKey
from ffcv_ops.stored_images import JPG, RAW, STORED_IMAGE
from ffcv_ops.transform import TransformParams, source_of, transform_image
from tests.ffcv_ops.images import jitter_by_pillow, three_by_pillow

SEED, SIZE = 11, 96


def pillow_crop(image, plan, draw, resize):
    if plan.crop == crops.RRC:
        v = crops.random_resized_crop(
            image.height, image.width, SIZE, plan.scale_low, plan.scale_high, RandomKey(SEED, draw)
        )
        box = (v.box_left, v.box_top, v.box_left + v.box_width, v.box_top + v.box_height)
        return resize(image.crop(box), (SIZE, SIZE))
    if plan.crop == crops.SRC:
        v = crops.simple_random_crop(image.height, image.width, SIZE, RandomKey(SEED, draw))
        full = np.asarray(resize(image, (v.full_width, v.full_height)))
        padded = np.pad(full, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        return Image.fromarray(padded[v.top + 4 : v.top + 4 + SIZE, v.left + 4 : v.left + 4 + SIZE])
    v = crops.center_crop(image.height, image.width, SIZE, plan.ratio)
    return resize(image, (v.full_width, v.full_height)).crop((v.left, v.top, v.left + SIZE, v.top + SIZE))


def pillow_transform(array, plan, text, draw, pillow_zoo, pillow_resize):
    """Crop, flip, policy, color jitter, erasing: the order of the official augment.py and of timm."""
    key = RandomKey(SEED, draw)
    image = pillow_crop(Image.fromarray(array), plan, draw, pillow_resize)
    if rng.uniform(key, rng.FLIP) < plan.flip:
        image = ImageOps.mirror(image)
    planes = None
    for step in chain.parse(text):
        options = dict(step.options)
        if step.name == "three":
            image = three_by_pillow(image, 7, key)
        elif step.name == "jitter":
            image = jitter_by_pillow(image, float(options["strength"]), key)
        elif step.name == "erase":  # last of all; its own test knows what it does
            planes = np.asarray(image).transpose(2, 0, 1).copy()
            erase = random_erasing.erase
            erase.kernel(planes, erase.record(options, 0), key, np.empty(0, np.uint8))
        else:
            image = pillow_zoo(image, str(step), key)
    return np.asarray(image) if planes is None else planes.transpose(1, 2, 0)


PLANS = {
    "evaluation": (TransformParams(crop=crops.CENTER, ratio=0.875), "none"),
    "rrc and flip": (TransformParams(crop=crops.RRC, flip=0.5), "none"),
    "rrc and 3-Augment": (TransformParams(crop=crops.RRC, flip=0.5), "three | jitter(0.3)"),
    "src and 3-Augment": (TransformParams(crop=crops.SRC, flip=0.5), "three | jitter(0.3)"),
    "official fine-tune": (TransformParams(flip=0.5), "rand(rand-m9-mstd0.5-inc1)"),
    "auto-v0 and erasing": (TransformParams(flip=0.5), "auto-v0 | erase(0.5)"),
    "trivial, jitter, const erasing": (TransformParams(crop=crops.SRC), "trivial | jitter(0.2) | erase(1, const)"),
}


def augmented(plan, text):
    return plan._replace(chain=load.compiled(load.from_text(text), plan.interpolation))


@pytest.mark.parametrize("plan, text", PLANS.values(), ids=PLANS.keys())
def test_equal_to_the_transform_made_of_pillow_calls(photos, pillow_zoo, pillow_resize, plan, text):
    params = augmented(plan, text)
    for draw in range(24):
        for name, image in photos.items():
            ours = transform_image(image, params, resolution=SIZE, key=RandomKey(SEED, draw))
            expected = pillow_transform(image, plan, text, draw, pillow_zoo, pillow_resize)
            np.testing.assert_array_equal(ours, expected, f"{name}, {draw}")


@pytest.mark.parametrize("augment", ["none", "three", "rand", "auto-original", "auto-v0", "trivial"])
@pytest.mark.parametrize("crop", [crops.RRC, crops.SRC, crops.CENTER])
def test_odd_images_do_not_break_it(odd_images, crop, augment):
    plan = augmented(
        TransformParams(crop=crop, flip=0.5), f"{augment} | jitter(0.3)" if augment != "none" else "jitter(0.3)"
    )
    for image in odd_images.values():
        for draw in range(6):
            out = transform_image(image, plan, resolution=32, key=RandomKey(0, draw))
            if np.ptp(image) == 0 and augment in ("none", "three"):
                assert np.ptp(out) == 0


def test_flip_frequency(photos):
    plan = TransformParams(crop=crops.CENTER, flip=0.25)
    image = photos["cat"]
    upright = transform_image(image, plan._replace(flip=0.0), resolution=32, key=RandomKey(0, 0))
    flips = 0
    for draw in range(2000):
        out = transform_image(image, plan, resolution=32, key=RandomKey(0, draw))
        flipped = np.array_equal(out, upright[:, ::-1])
        assert flipped or np.array_equal(out, upright)
        flips += flipped
    assert abs(flips - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_interpolation_is_a_choice(photos, pillow_resize):
    image = photos["china"]
    plan = TransformParams(crop=crops.CENTER, interpolation=resample.BILINEAR)
    resized = pillow_resize(Image.fromarray(image), (143, 96), Image.Resampling.BILINEAR)
    ours = transform_image(image, plan, resolution=SIZE, key=RandomKey(0, 0))
    np.testing.assert_array_equal(ours, np.asarray(resized)[:, 24:120])


def pyramid(mode=JPG):
    levels = np.zeros(3, STORED_IMAGE)
    levels["mode"], levels["height"], levels["width"] = mode, (375, 192, 120), (500, 256, 160)
    return levels


@pytest.mark.parametrize(
    "size, least, mode, expected",
    [
        (224, 0.0, JPG, (0, 8, 375, 500)),  # nothing is saved unless it is asked for
        (224, 1.0, JPG, (0, 8, 375, 500)),  # the next level has 192 rows
        (192, 1.0, JPG, (1, 8, 192, 256)),
        (192, 1.01, JPG, (0, 8, 375, 500)),
        (128, 1.0, JPG, (1, 8, 192, 256)),
        (96, 1.0, JPG, (2, 8, 120, 160)),  # of two ways to as many pixels, the smaller level
        (60, 1.0, JPG, (2, 4, 60, 80)),
        (60, 1.0, RAW, (2, 8, 120, 160)),  # raw pixels have no DCT
        (15, 1.0, JPG, (2, 1, 15, 20)),
        (8, 1.0, JPG, (2, 1, 15, 20)),  # 1/8 is the least
    ],
)
def test_the_least_that_suffices_is_read(size, least, mode, expected):
    """A whole image of 500 x 375 whose shorter side becomes `size`."""
    view = crops.center_crop(375, 500, size, 1.0)
    source = source_of(view, pyramid(mode), least)
    assert tuple(source) == expected


@pytest.mark.parametrize("least", [1.0, 1.3])
def test_enough_pixels_remain_in_both_directions(least):
    used = set()
    for draw in range(300):
        view = crops.random_resized_crop(375, 500, 64, 0.08, 1.0, RandomKey(SEED, draw))
        source = source_of(view, pyramid(), least)
        used.add((source.level, source.scale_num))
        if source.level or source.scale_num < 8:
            assert view.box_height * source.height / 375 >= 64 * least - 1
            assert view.box_width * source.width / 500 >= 64 * least - 1
    assert {(0, 8), (1, 8), (2, 8)} <= used
