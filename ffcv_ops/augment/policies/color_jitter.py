"""Color jitter of brightness, contrast and saturation (no hue) in random order: torchvision's ColorJitter
with the same strength for each, on Pillow images; every step rounds to 8 bits."""

from ffcv_ops import rng
from ffcv_ops.augment.declare import augmentation, number
from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import pixels


@kernel
def factor_of(strength, which, key):
    """Factor of brightness (which = 0), contrast (1) or saturation (2): uniform on [1 - strength, 1 + strength]."""
    low = max(1.0 - strength, 0.0)
    return low + (1.0 + strength - low) * rng.uniform(key, rng.JITTER + which)


@kernel
def adjustment(order, position):
    """Which of the three adjustments runs at `position` in permutation number `order` (0..5)."""
    first = order // 2
    if position == 0:
        return first
    low, high = (1 if first == 0 else 0), (1 if first == 2 else 2)
    return low if (position == 1) == (order % 2 == 0) else high


def words(options, height, width, key):
    factors = (factor_of(options.strength, which, key) for which in range(3))
    return ["bcs " + " ".join(f"{factor:.2f}".lstrip("0") for factor in factors)]


def by_pillow(image, options, key):
    from PIL import ImageEnhance

    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    order = rng.uniform_int(key, rng.JITTER_ORDER, 6)
    for position in range(3):
        which = adjustment(order, position)
        image = enhancers[which](image).enhance(factor_of(options.strength, which, key))
    return image


@augmentation(
    strength=number("brightness, contrast and saturation in 1 -+ this", default=0.3, low=0, high=1),
    words=words,
    reference=by_pillow,
)
def jitter(planes, options, key, scratch):
    """Color jitter: brightness, contrast and saturation in random order."""
    order = rng.uniform_int(key, rng.JITTER_ORDER, 6)
    for position in range(3):
        which = adjustment(order, position)
        factor = factor_of(options.strength, which, key)
        if which == 0:
            pixels.brightness(planes, factor)
        elif which == 1:
            pixels.contrast(planes, factor)
        else:
            pixels.saturation(planes, factor)
