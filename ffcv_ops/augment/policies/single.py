"""One operation each, with a probability: torchvision's RandomGrayscale and RandomSolarize, Pillow's GaussianBlur."""

from ffcv_ops import rng
from ffcv_ops.augment.declare import augmentation, number, whole_number
from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import pixels


@kernel
def is_gray(options, key):
    return rng.uniform(key, rng.GRAY) < options.probability


def gray_by_pillow(image, options, key):
    return image.convert("L").convert("RGB") if is_gray(options, key) else image


@augmentation(
    probability=number("probability", default=0.1, low=0, high=1),
    is_gray=is_gray,
    words=lambda options, height, width, key: ["gray"] * is_gray(options, key),
    reference=gray_by_pillow,
)
def gray(planes, options, key, scratch):
    """Grayscale."""
    if is_gray(options, key):
        pixels.grayscale(planes)


@kernel
def is_solarized(options, key):
    return rng.uniform(key, rng.SOLARIZE) < options.probability


def solarize_by_pillow(image, options, key):
    from PIL import ImageOps

    return ImageOps.solarize(image, int(options.threshold)) if is_solarized(options, key) else image


@augmentation(
    probability=number("probability", default=0.5, low=0, high=1),
    threshold=whole_number("values from this on are inverted", default=128, low=0, high=256),
    words=lambda options, height, width, key: ["solarize"] * is_solarized(options, key),
    reference=solarize_by_pillow,
)
def solarize(planes, options, key, scratch):
    """Solarize: bright values are inverted."""
    if is_solarized(options, key):
        pixels.solarize(planes, options.threshold)


@kernel
def sigma_of(options, key):
    """Standard deviation of this sample's blur, in pixels; 0: none."""
    if rng.uniform(key, rng.BLUR) >= options.probability:
        return 0.0
    return options.low + (options.high - options.low) * rng.uniform(key, rng.BLUR + 1)


def blur_by_pillow(image, options, key):
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(sigma_of(options, key)))


@augmentation(
    probability=number("probability", default=0.5, low=0, high=1),
    low=number("smallest standard deviation, pixels", default=0.1, low=0, high=16),
    high=number("largest", default=2, low=0, high=16),
    words=lambda options, height, width, key: [f"blur {sigma:.1f}"] if (sigma := sigma_of(options, key)) else [],
    reference=blur_by_pillow,
)
def blur(planes, options, key, scratch):
    """Gaussian blur of a random width."""
    pixels.gaussian_blur(planes, sigma_of(options, key), scratch)
