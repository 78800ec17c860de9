"""TrivialAugment's space against torchvision's, and the draws from it."""

import numpy as np
from scipy import stats
from torchvision.transforms import TrivialAugmentWide

from ffcv_ops.augment import operations
from ffcv_ops.augment.policies import trivialaugment
from ffcv_ops.rng import RandomKey

NAMES = {
    "Identity": "identity", "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x",
    "TranslateY": "translate_y", "Rotate": "rotate", "Brightness": "brightness", "Color": "color",
    "Contrast": "contrast", "Sharpness": "sharpness", "Posterize": "posterize", "Solarize": "solarize",
    "AutoContrast": "autocontrast", "Equalize": "equalize",
}  # fmt: skip


def test_the_space_is_torchvisions():
    space = TrivialAugmentWide()._augmentation_space(31)
    assert [operations.NAMES[op] for op in trivialaugment.OPS] == [NAMES[name] for name in space]
    rows = zip(space.values(), trivialaugment.STRENGTHS, trivialaugment.SIGNED, trivialaugment.OPS, strict=True)
    for (theirs, signed), ours, our_sign, op in rows:
        assert our_sign == signed
        rounded = np.rint(ours) if op == operations.POSTERIZE else ours
        np.testing.assert_allclose(rounded, np.broadcast_to(theirs.numpy(), 31), rtol=2e-7)


def test_choices_bins_and_signs_are_even():
    chosen = np.array([trivialaugment.choose(RandomKey(1, draw)) for draw in range(30000)])
    ops = chosen[:, 0].astype(int)
    assert stats.chisquare([np.sum(ops == op) for op in trivialaugment.OPS]).pvalue > 1e-3
    angles = chosen[ops == operations.ROTATE, 1]
    bins = np.rint(np.abs(angles) / 4.5).astype(int)
    assert stats.chisquare(np.bincount(bins, minlength=31)).pvalue > 1e-3
    turned = angles[angles != 0]
    assert stats.binomtest(int(np.sum(turned > 0)), len(turned)).pvalue > 1e-3
    assert set(chosen[ops == operations.POSTERIZE, 1]) == set(range(2, 9))
    assert {*chosen[ops == operations.TRANSLATE_X, 1]} <= set(range(-32, 33))
    factors = chosen[ops == operations.BRIGHTNESS, 1]
    assert factors.min() < 0.05 and factors.max() > 1.95 and abs(factors.mean() - 1) < 0.05
