"""uint8 images (n, height, width, 3) and int64 labels (n,) -> normalised float32 images (n, 3, height, width) in
channels-last memory and float32 targets (n, classes), mixed by mixup or CutMix (paper: both, chosen chunk by chunk).

A global batch consists of chunks, each of which is mixed with one draw, as on one GPU of the official runs; a draw is
a pure function of (seed, step, chunk). The loader lays chunks out so that the partner of the sample at position p is
at p ^ 1; hence any even slice of a global batch is mixed as it would be in the whole.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from config.recipe import StageConfig
from ffcv_ops import rng
from ffcv_ops.rng import RandomKey

_CHUNKS = 1 << 20  # more than the chunks of any step: step * _CHUNKS + chunk is unique


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


def mix_params(
    config: StageConfig, seed: int, step: int, *, resolution: int, first: int, samples: int
) -> Tensor | None:
    """The draws of samples first .. first + samples - 1 of the global batch, a row for each: (samples, 6) float32 on
    the host, the columns of `MixParams`. Both numbers even. None where the stage does not mix."""
    if not config.mixing:
        return None
    chunks = range(first // config.mix_chunk, (first + samples - 1) // config.mix_chunk + 1)
    alphas = {"mixup": config.mixup, "cutmix": config.cutmix}
    rows = torch.tensor([draw(seed, step, chunk, **alphas, resolution=resolution) for chunk in chunks])
    return rows[torch.arange(first, first + samples) // config.mix_chunk - chunks[0]]


def mix(
    images: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    *,
    classes: int,
    smoothing: float,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> tuple[Tensor, Tensor]:
    """rows: the samples' `mix_params`, on the device of the images; None mixes nothing. The host waits for no GPU."""
    images, targets = normalize(images, mean, std), soft_targets(labels, classes=classes, smoothing=smoothing)
    if rows is None:
        return images, targets
    lam, keep, top, bottom, left, right = rows[:, :, None, None].unbind(1)  # (n, 1, 1) each
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    x = torch.arange(images.shape[3], device=images.device)
    inside = (top <= y) & (y < bottom) & (left <= x) & (x < right)
    own = torch.where(inside, 0.0, keep)
    return _blend(images, own[:, None]), _blend(targets, lam[:, 0])


def _blend(tensor, own):
    """`own` of each sample and 1 - `own` of its neighbour; exact where `own` is 0 or 1."""
    partner = tensor.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(partner, tensor, own)


def normalize(
    images: Tensor, mean: Sequence[float] = IMAGENET_DEFAULT_MEAN, std: Sequence[float] = IMAGENET_DEFAULT_STD
) -> Tensor:
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
