"""Augmentation policies: draws -> which pixel operations run, in which order and how strongly.

3-Augment (paper section 3.3; official code, augment.py): exactly one of grayscale, solarize and Gaussian blur, each
with the same probability. RandAugment, AutoAugment and TrivialAugment are rows of operations, chosen by a file each;
they fill what they uncover with the mean colour (TrivialAugment: black). Any policy may be followed by ColorJitter of
brightness, contrast and saturation (no hue) in random order, as 3-Augment is in the paper.
"""

from ffcv_ops import autoaugment, operations, randaugment, rng, trivialaugment
from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import geometry, pixels

NONE, THREE, RAND, AUTO_ORIGINAL, AUTO_V0, TRIVIAL = range(6)
NAMES = {
    "none": NONE, "three": THREE, "rand": RAND, "auto-original": AUTO_ORIGINAL, "auto-v0": AUTO_V0, "trivial": TRIVIAL,
}  # fmt: skip

# The operations that 3-Augment chooses from, as bits of `three_ops`.
GRAY, SOLARIZE, BLUR = 1, 2, 4
THREE_OPS = {"gray": GRAY, "solarize": SOLARIZE, "blur": BLUR}

SOLARIZE_THRESHOLD = 128
SIGMA = (0.1, 2.0)  # pixels, uniform

MEAN_COLOUR = (124, 116, 104)  # ImageNet's mean, as timm rounds it
BLACK = (0, 0, 0)


@kernel
def three_choice(three_ops, key):
    """The one operation (GRAY, SOLARIZE or BLUR) of this draw, uniform over the bits set in `three_ops`."""
    enabled = (three_ops & GRAY) // GRAY + (three_ops & SOLARIZE) // SOLARIZE + (three_ops & BLUR) // BLUR
    nth = rng.uniform_int(key, rng.THREE_CHOICE, enabled)
    op = GRAY
    while True:
        if three_ops & op:
            if nth == 0:
                return op
            nth -= 1
        op *= 2


@kernel
def is_gray(augment, three_ops, key):
    """Whether the policy makes this draw gray before anything else happens to its colours."""
    return augment == THREE and three_choice(three_ops, key) == GRAY


@kernel
def three_sigma(key):
    """Standard deviation of the blur, in pixels."""
    return SIGMA[0] + (SIGMA[1] - SIGMA[0]) * rng.uniform(key, rng.THREE_SIGMA)


@kernel
def jitter_factor(strength, which, key):
    """Factor of brightness (which = 0), contrast (1) or saturation (2): uniform on [1 - strength, 1 + strength]."""
    low = max(1.0 - strength, 0.0)
    return low + (1.0 + strength - low) * rng.uniform(key, rng.JITTER + which)


@kernel
def jitter_step(order, position):
    """Which of the three adjustments runs at `position` in permutation number `order` (0..5)."""
    first = order // 2
    if position == 0:
        return first
    low, high = (1 if first == 0 else 0), (1 if first == 2 else 2)
    return low if (position == 1) == (order % 2 == 0) else high


@kernel
def color_jitter(planes, strength, key):
    """torchvision's ColorJitter(strength, strength, strength) on Pillow images; every step rounds to 8 bits."""
    order = rng.uniform_int(key, rng.JITTER_ORDER, 6)
    for position in range(3):
        which = jitter_step(order, position)
        factor = jitter_factor(strength, which, key)
        if which == 0:
            pixels.brightness(planes, factor)
        elif which == 1:
            pixels.contrast(planes, factor)
        else:
            pixels.saturation(planes, factor)


@kernel
def layers(augment, rand):
    """How many operations the policy puts in a row (3-Augment's are not of this kind)."""
    if augment == RAND:
        return rand.layers
    if augment in (AUTO_ORIGINAL, AUTO_V0):
        return autoaugment.LAYERS
    return 1 if augment == TRIVIAL else 0


@kernel
def choose(augment, rand, layer, height, width, key):
    """The operation of this layer (a number of operations.NAMES) and its argument."""
    if augment == RAND:
        return randaugment.choose(rand, layer, height, width, key)
    if augment == TRIVIAL:
        return trivialaugment.choose(key)
    policy = autoaugment.ORIGINAL if augment == AUTO_ORIGINAL else autoaugment.V0
    return autoaugment.choose(policy, layer, height, width, key)


@kernel
def apply(planes, augment, three_ops, rand, interpolation, jitter, key, spare):
    """Augments `planes` (uint8 [3, height, width]) in place.

    rand: randaugment.Strength. interpolation: resample's, for rotations and the like. spare: uint8, at least
    `scratch(height, width)` values.
    """
    _, height, width = planes.shape
    if augment == THREE:
        op = three_choice(three_ops, key)
        if op == GRAY:
            pixels.grayscale(planes)
        elif op == SOLARIZE:
            pixels.solarize(planes, SOLARIZE_THRESHOLD)
        else:
            pixels.gaussian_blur(planes, three_sigma(key), spare)
    how, fill = (geometry.NEAREST, BLACK) if augment == TRIVIAL else (interpolation, MEAN_COLOUR)
    for layer in range(layers(augment, rand)):
        op, value = choose(augment, rand, layer, height, width, key)
        operations.run(planes, op, value, how, fill, spare)
    if jitter > 0.0:
        color_jitter(planes, jitter, key)


@kernel
def scratch(height, width):
    """uint8 values of spare memory that `apply` needs: more than the two planes of the blur."""
    return operations.scratch(height, width)
