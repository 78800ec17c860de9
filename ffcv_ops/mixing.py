"""uint8 images (n, height, width, 3) and int64 labels (n,) -> normalized float32 images (n, 3, height, width) in
channels-last memory and float32 targets (n, classes), mixed by mixup or CutMix (paper: both, chosen chunk by chunk).

    images, targets = mixup_cutmix(images, labels, classes=1000, seed=0, step=step)    # one call does it all

A global batch consists of chunks, each of which is mixed with one draw, as on one GPU of the official runs; a draw is
a pure function of (seed, step, chunk). The loader lays chunks out so that the partner of the sample at position p is
at p ^ 1; hence any even slice of a global batch is mixed as it would be in the whole.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ffcv_ops import rng
from ffcv_ops.errors import UserError
from ffcv_ops.rng import RandomKey

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values from 0 to 1
_CHUNKS = 1 << 20  # more than the chunks of any step: step * _CHUNKS + chunk is unique


class Mixing(NamedTuple):
    """How batches are mixed: alphas of Beta(alpha, alpha), 0 for none of the kind, and the samples that share a
    draw."""

    mixup: float = 0.8
    cutmix: float = 1.0
    chunk: int = 256


_AS_PUBLISHED = Mixing()


class MixParams(NamedTuple):
    """How one chunk is mixed. Mixup: the box is empty. CutMix: `keep` is 1, the box comes from the partner."""

    lam: float  # share of a sample's own label
    keep: float  # share of a sample's own pixels outside the box
    top: int
    bottom: int
    left: int
    right: int


def draw(seed: int, step: int, chunk: int, *, mixup: float, cutmix: float, resolution: int) -> MixParams:
    """The distribution of timm 0.3.2, which the official code pins: with both alphas above 0 each of the two has
    probability 1/2; lam ~ Beta(alpha, alpha). The box is a square of area 1 - lam around a uniform center. An odd side
    loses a pixel (not so in timm 1.0), the image clips the box, and lam then follows from what is left of it."""
    key = RandomKey(seed, step * _CHUNKS + chunk)
    is_cutmix = cutmix > 0 and (mixup == 0 or rng.uniform(key, rng.MIX) < 0.5)
    alpha = cutmix if is_cutmix else mixup
    if alpha == 0:
        return MixParams(1.0, 1.0, 0, 0, 0, 0)
    from scipy.special import betaincinv  # 0.4 s, and recipes without mixing need none of it

    lam = float(betaincinv(alpha, alpha, rng.uniform(key, rng.MIX + 1)))
    if not is_cutmix:
        return MixParams(lam, lam, 0, 0, 0, 0)
    side = int(resolution * (1 - lam) ** 0.5)
    top, bottom = _interval(side, rng.uniform_int(key, rng.MIX + 2, resolution), resolution)
    left, right = _interval(side, rng.uniform_int(key, rng.MIX + 3, resolution), resolution)
    return MixParams(1 - (bottom - top) * (right - left) / resolution**2, 1.0, top, bottom, left, right)


def _interval(side, center, resolution):
    return max(center - side // 2, 0), min(center + side // 2, resolution)


def mix_params(how: Mixing, seed: int, step: int, *, resolution: int, first: int, samples: int) -> Tensor | None:
    """The draws of samples first .. first + samples - 1 of the global batch, a row for each: (samples, 6) float32 on
    the host, the columns of `MixParams`. Both numbers even. None where nothing is mixed."""
    if how.mixup == how.cutmix == 0:
        return None
    chunks = range(first // how.chunk, (first + samples - 1) // how.chunk + 1)
    alphas = {"mixup": how.mixup, "cutmix": how.cutmix}
    rows = torch.tensor([draw(seed, step, chunk, **alphas, resolution=resolution) for chunk in chunks])
    return rows[torch.arange(first, first + samples) // how.chunk - chunks[0]]


def mixup_cutmix(
    images: Tensor, labels: Tensor, *, classes: int, seed: int, step: int, how: Mixing = _AS_PUBLISHED, smoothing=0.0
) -> tuple[Tensor, Tensor]:
    """A batch of a loader, mixed on its device: (images, targets), floats (n, 3, height, width) and (n, classes).

    images: uint8 (n, height, width, 3), which are normalized, or normalized floats (n, 3, height, width); n is even and
    neighbors are mixed, so nothing is asked of the loader. labels: int64 (n,), or floats (n, classes), as they are.
    step: since the start, from which the draws follow. Ranks of torch.distributed have draws of their own. UserError
    where n is odd.
    """
    if len(images) % 2:
        raise UserError(f"mixup_cutmix: an even number of images is mixed, not {len(images)}")
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    first = len(images) * torch.distributed.get_rank() if together else 0
    rows = mix_params(how, seed, step, resolution=images.shape[2], first=first, samples=len(images))
    if rows is not None and images.is_cuda:
        rows = rows.pin_memory().to(images.device, non_blocking=True)
    return mix(images, labels, rows, classes=classes, smoothing=smoothing)


class Patches(NamedTuple):
    """How images are cut for a model that takes patches: their side in pixels, and the type of their numbers."""

    side: int
    dtype: torch.dtype


def mix(
    images: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    *,
    classes: int,
    smoothing: float,
    patches: Patches | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> tuple[Tensor, Tensor]:
    """rows: the samples' `mix_params`, on the device of the images; None mixes nothing. The host waits for no GPU.

    Returns images, float32 (n, 3, height, width), or where `patches` says how to cut them what `cut` gives; and
    targets, float32 (n, classes).
    """
    images = normalize(images, mean, std) if images.dtype == torch.uint8 else images
    targets = labels if labels.is_floating_point() else soft_targets(labels, classes=classes, smoothing=smoothing)
    if rows is not None:
        images, targets = _mixed(images, targets, rows)
    return images if patches is None else cut(images, patches.side).to(patches.dtype), targets


def cut(images: Tensor, side: int) -> Tensor:
    """(n, 3, height, width) -> (n, patches, 3 side^2), line by line, each in the order of a convolution's weights. What
    is left over at the right and below is left out, as a convolution does."""
    down, across = images.shape[2] // side, images.shape[3] // side
    images = images[:, :, : down * side, : across * side]
    parts = images.unflatten(3, (across, side)).unflatten(2, (down, side))  # (n, 3, down, side, across, side)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(len(images), down * across, -1)


def _mixed(images, targets, rows):
    lam, keep, top, bottom, left, right = rows[:, :, None, None].unbind(1)  # (n, 1, 1) each
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    x = torch.arange(images.shape[3], device=images.device)
    inside = (top <= y) & (y < bottom) & (left <= x) & (x < right)
    own = torch.where(inside, 0.0, keep)
    return _blend(images, own[:, None]), _blend(targets, lam[:, 0])


def _blend(tensor, own):
    """`own` of each sample and 1 - `own` of its neighbour; exact where `own` is 0 or 1."""
    partner = tensor.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(partner, tensor, own.to(tensor.dtype))


def normalize(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """uint8 (n, height, width, 3) -> float32 (n, 3, height, width): of channels in 0..1, `mean` becomes 0 and the
    deviation `std` 1."""
    scale = _channels([1 / (255 * one) for one in std], images.device)
    shift = _channels([-middle / one for middle, one in zip(mean, std, strict=True)], images.device)
    return torch.addcmul(shift, images.permute(0, 3, 1, 2), scale)


def _channels(values, device):
    """(3, 1, 1). Filled in on the device: to copy a list there would make the host wait for a GPU."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])


def soft_targets(labels: Tensor, *, classes: int, smoothing: float) -> Tensor:
    """int64 (n,) -> float32 (n, classes): smoothing / classes everywhere, and 1 - smoothing more at the label."""
    off = smoothing / classes
    is_label = labels[:, None] == torch.arange(classes, device=labels.device)
    return torch.where(is_label, 1 - smoothing + off, off)
