"""What --compare shows beside ours: it agrees with ours where Pillow is the measure, and is no copy of it."""

import inspect

import numpy as np
import pytest

from ffcv_ops import policies, randaugment
from ffcv_ops.kernels import crops, resample
from ffcv_ops.rng import RandomKey
from ffcv_ops.transform import TransformParams, transform_image
from tools import reference

PLANS = {
    "rrc": TransformParams(crop=crops.RRC, flip=0.5, augment=policies.THREE, jitter=0.3),
    "src": TransformParams(crop=crops.SRC, flip=0.5, augment=policies.THREE, jitter=0.3),
    "center": TransformParams(crop=crops.CENTER, ratio=0.875),
    "bilinear": TransformParams(crop=crops.RRC, interpolation=resample.BILINEAR),
    "rand": TransformParams(augment=policies.RAND, rand=randaugment.Strength(probability=0.9, layers=3)),
    "auto": TransformParams(crop=crops.SRC, augment=policies.AUTO_ORIGINAL),
    "auto-v0": TransformParams(crop=crops.SRC, augment=policies.AUTO_V0),
    "trivial": TransformParams(crop=crops.RRC, augment=policies.TRIVIAL),
}


@pytest.mark.parametrize("name", PLANS)
def test_ours_equals_the_reference(photos, name):
    plan, seen = PLANS[name], []
    for draw in range(24):
        image = photos["cat" if draw % 2 else "china"]
        ours = transform_image(image, plan, resolution=64, key=RandomKey(3, draw))
        theirs = reference.show(image, plan=plan, resolution=64, key=RandomKey(3, draw))
        np.testing.assert_array_equal(ours, theirs, err_msg=str(draw))
        seen.append(theirs.mean())
    assert np.std(seen) > 1 or name == "center"


def test_a_difference_would_show(photos):
    """Another draw, another interpolation: the reference is not ours under another name."""
    plan = PLANS["rrc"]
    ours = transform_image(photos["cat"], plan, resolution=64, key=RandomKey(3, 0))
    assert not np.array_equal(ours, reference.show(photos["cat"], plan=plan, resolution=64, key=RandomKey(3, 1)))
    other = plan._replace(interpolation=resample.BILINEAR)
    assert not np.array_equal(ours, reference.show(photos["cat"], plan=other, resolution=64, key=RandomKey(3, 0)))
    source = inspect.getsource(reference)
    assert "transform_image(" not in source.replace("`transform_image`", "") and "policies.apply" not in source
