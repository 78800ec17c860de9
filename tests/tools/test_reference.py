"""What --compare shows beside ours: it agrees with ours where Pillow is the measure, and is no copy of it."""

import inspect

import numpy as np
import pytest

from ffcv_ops.augment import load, pillow
from ffcv_ops.kernels import crops, resample
from ffcv_ops.rng import RandomKey
from ffcv_ops.transform import TransformParams, transform_image
from tools import reference

PLANS = {
    "rrc": (TransformParams(crop=crops.RRC, flip=0.5), "three | jitter(0.3)"),
    "src": (TransformParams(crop=crops.SRC, flip=0.5), "three | jitter(0.3)"),
    "center": (TransformParams(crop=crops.CENTER, ratio=0.875), "none"),
    "bilinear": (TransformParams(crop=crops.RRC, interpolation=resample.BILINEAR), "none"),
    "rand": (TransformParams(crop=crops.RRC), "rand(rand-n3-p0.9)"),
    "auto": (TransformParams(crop=crops.SRC), "auto-original"),
    "auto-v0": (TransformParams(crop=crops.SRC), "auto-v0"),
    "trivial": (TransformParams(crop=crops.RRC), "trivial"),
}


def both(image, name, draw):
    """Ours and the reference."""
    params, text = PLANS[name]
    loaded, key = load.from_text(text), RandomKey(3, draw)
    params = params._replace(chain=load.compiled(loaded, params.interpolation))
    ours = transform_image(image, params, resolution=64, key=key)
    return ours, reference.show(image, params, loaded, resolution=64, key=key)


@pytest.mark.parametrize("name", PLANS)
def test_ours_equals_the_reference(photos, name):
    seen = []
    for draw in range(24):
        ours, theirs = both(photos["cat" if draw % 2 else "china"], name, draw)
        np.testing.assert_array_equal(ours, theirs, err_msg=str(draw))
        seen.append(theirs.mean())
    assert np.std(seen) > 1 or name == "center"


def test_a_difference_would_show(photos):
    """Another draw, another interpolation: the reference is not ours under another name."""
    ours, same = both(photos["cat"], "rrc", 0)
    assert not np.array_equal(ours, both(photos["cat"], "rrc", 1)[1])
    params, loaded = PLANS["rrc"][0], load.from_text("three | jitter(0.3)")
    other = params._replace(interpolation=resample.BILINEAR)
    assert not np.array_equal(same, reference.show(photos["cat"], other, loaded, resolution=64, key=RandomKey(3, 0)))
    source = inspect.getsource(reference) + inspect.getsource(pillow)
    assert "transform_image(" not in source and "calls" not in source
