"""What --compare shows beside ours: it agrees with ours where Pillow is the measure, and is no copy of it."""

import inspect

import numpy as np
import pytest

from ffcv_ops import decoders, policies
from ffcv_ops.kernels import crops, resample
from ffcv_ops.rng import RandomKey
from tools import reference

PLANS = {
    "rrc": decoders.TransformParams(crop=crops.RRC, flip=0.5, augment=policies.THREE, jitter=0.3),
    "src": decoders.TransformParams(crop=crops.SRC, flip=0.5, augment=policies.THREE, jitter=0.3),
    "centre": decoders.TransformParams(crop=crops.CENTRE, ratio=0.875),
    "bilinear": decoders.TransformParams(crop=crops.RRC, interpolation=resample.BILINEAR),
    "rand": decoders.TransformParams(crop=crops.RRC, augment=policies.RAND, rand_probability=0.9, rand_layers=3),
    "auto": decoders.TransformParams(crop=crops.SRC, augment=policies.AUTO_ORIGINAL),
    "auto-v0": decoders.TransformParams(crop=crops.SRC, augment=policies.AUTO_V0),
    "trivial": decoders.TransformParams(crop=crops.RRC, augment=policies.TRIVIAL),
}


@pytest.mark.parametrize("name", PLANS)
def test_ours_equals_the_reference(photos, name):
    plan, seen = PLANS[name], []
    for draw in range(24):
        image = photos["cat" if draw % 2 else "china"]
        ours = decoders.show(image, plan=plan, resolution=64, key=RandomKey(3, draw))
        theirs = reference.show(image, plan=plan, resolution=64, key=RandomKey(3, draw))
        np.testing.assert_array_equal(ours, theirs, err_msg=str(draw))
        seen.append(theirs.mean())
    assert np.std(seen) > 1 or name == "centre"


def test_a_difference_would_show(photos):
    """Another draw, another interpolation: the reference is not ours under another name."""
    plan = PLANS["rrc"]
    ours = decoders.show(photos["cat"], plan=plan, resolution=64, key=RandomKey(3, 0))
    assert not np.array_equal(ours, reference.show(photos["cat"], plan=plan, resolution=64, key=RandomKey(3, 1)))
    other = plan._replace(interpolation=resample.BILINEAR)
    assert not np.array_equal(ours, reference.show(photos["cat"], plan=other, resolution=64, key=RandomKey(3, 0)))
    source = inspect.getsource(reference)
    assert "decoders.show(" not in source.replace("`decoders.show`", "") and "policies.apply" not in source
