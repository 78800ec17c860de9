"""3-Augment (DeiT III, section 3.3; official code, augment.py): exactly one of grayscale, solarize and Gaussian blur,
each with the same probability. In the paper the color jitter follows."""

from ffcv_ops import rng
from ffcv_ops.augment.declare import augmentation, some_of
from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import pixels

NAMES = ("gray", "solarize", "blur")
GRAY, SOLARIZE, BLUR = 1, 2, 4  # bits of the option `ops`

SOLARIZE_THRESHOLD = 128
SIGMA = (0.1, 2.0)  # pixels, uniform


@kernel
def choice_of(ops, key):
    """The one operation (GRAY, SOLARIZE or BLUR) of this draw, uniform over the bits set in `ops`."""
    enabled = (ops & GRAY) // GRAY + (ops & SOLARIZE) // SOLARIZE + (ops & BLUR) // BLUR
    nth = rng.uniform_int(key, rng.THREE_CHOICE, enabled)
    op = GRAY
    while True:
        if ops & op:
            if nth == 0:
                return op
            nth -= 1
        op *= 2


@kernel
def sigma_of(key):
    """Standard deviation of the blur, in pixels."""
    return SIGMA[0] + (SIGMA[1] - SIGMA[0]) * rng.uniform(key, rng.THREE_SIGMA)


@kernel
def is_gray(options, key):
    return choice_of(options.ops, key) == GRAY


def words(options, height, width, key):
    op = choice_of(options.ops, key)
    return [f"blur {sigma_of(key):.1f}" if op == BLUR else NAMES[op // 2]]


def by_pillow(image, options, key):
    from PIL import ImageFilter, ImageOps

    op = choice_of(options.ops, key)
    if op == GRAY:
        return image.convert("L").convert("RGB")
    if op == SOLARIZE:
        return ImageOps.solarize(image, SOLARIZE_THRESHOLD)
    return image.filter(ImageFilter.GaussianBlur(sigma_of(key)))


@augmentation(
    ops=some_of("what one of is done to each sample", *NAMES, default="+".join(NAMES)),
    is_gray=is_gray,
    words=words,
    reference=by_pillow,
    examples=("three | jitter(0.3)",),
)
def three(planes, options, key, scratch):
    """3-Augment: one of gray, solarize and blur."""
    op = choice_of(options.ops, key)
    if op == GRAY:
        pixels.grayscale(planes)
    elif op == SOLARIZE:
        pixels.solarize(planes, SOLARIZE_THRESHOLD)
    else:
        pixels.gaussian_blur(planes, sigma_of(key), scratch)
