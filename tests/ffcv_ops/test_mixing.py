"""References: timm's Mixup given our random numbers and the boxes of version 0.3.2, SciPy's beta distribution,
torchvision's normalize."""

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data import mixup as timm_mixup
from torchvision.transforms import functional as vision

from ffcv_ops import rng
from ffcv_ops.mixing import Mixing, MixParams, Patches, cut, draw, mix, mix_params, normalize, soft_targets

CLASSES = 10


HOW = Mixing(mixup=0.8, cutmix=1.0, chunk=16)


def box_of_the_official_runs(shape, lam, margin=0.0, count=None):
    """timm 0.3.2: a half of int(side), rounded down, on either side of the center. In timm 1.0 the half that follows is
    rounded up."""
    ends = []
    for side, center in ((side, timm_mixup.np.random.randint(0, side, size=count)) for side in shape[-2:]):
        half = int(side * np.sqrt(1 - lam)) // 2
        ends += [np.clip(center - half, 0, side), np.clip(center + half, 0, side)]
    return tuple(ends)


@pytest.fixture(autouse=True)
def timm_of_the_official_runs(monkeypatch):
    monkeypatch.setattr(timm_mixup, "rand_bbox", box_of_the_official_runs)


def batch(count, size=40, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=random)
    return images, torch.randint(0, CLASSES, (count,), generator=random)


def flipped_order(chunk):
    """Position in our layout -> position in the official chunk, whose partners are i and C - 1 - i."""
    return torch.tensor([p // 2 if p % 2 == 0 else chunk - 1 - p // 2 for p in range(chunk)])


class Numbers:
    """A source of randomness for timm: the uniforms of one draw key, turned into numbers by SciPy's inverse CDF."""

    def __init__(self, seed, key):
        self.uniforms = [rng.uniform(rng.RandomKey(seed, key), rng.MIX + stream) for stream in range(4)]
        self.rands = [0.0, self.uniforms[0]]  # whether to mix at all (timm: with probability 1), which of the two
        self.centres = self.uniforms[2:]

    def rand(self):
        return self.rands.pop(0)

    def beta(self, a, b):
        return stats.beta.ppf(self.uniforms[1], a, b)

    def randint(self, low, high, size=None):
        return int(low + self.centres.pop(0) * (high - low))


@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0), (0.2, 0.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_chunk_is_mixed_as_timm_mixes_it(alphas, smoothing, monkeypatch):
    mixup, cutmix = alphas
    reference = timm_mixup.Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=CLASSES)
    order, kinds = flipped_order(16), set()
    images, labels = batch(16)
    for chunk in range(12):
        expected_images = torch.empty(16, 3, 40, 40)
        expected_images[order] = normalize(images).contiguous()
        expected_labels = torch.empty_like(labels)
        expected_labels[order] = labels
        with monkeypatch.context() as patch:
            patch.setattr(timm_mixup.np, "random", Numbers(7, (3 << 20) + chunk))
            expected_images, expected_targets = reference(expected_images, expected_labels)

        ours = draw(7, 3, chunk, mixup=mixup, cutmix=cutmix, resolution=40)
        kinds.add(ours.keep == 1.0)
        mixed, targets = mix(images, labels, torch.tensor([ours] * 16), classes=CLASSES, smoothing=smoothing)
        assert torch.allclose(mixed, expected_images[order], atol=2e-6, rtol=0)
        assert torch.allclose(targets, expected_targets[order], atol=2e-6, rtol=0)
    assert kinds == {True, False} if mixup and cutmix else kinds == {cutmix > 0}


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_any_even_slice_is_mixed_as_in_the_whole(count):
    images, labels = batch(48)
    whole = mix(
        images, labels, mix_params(HOW, 1, 5, resolution=40, first=0, samples=48), classes=CLASSES, smoothing=0.1
    )
    for offset in range(0, 48, count):
        part = slice(offset, offset + count)
        rows = mix_params(HOW, 1, 5, resolution=40, first=offset, samples=count)
        images_part, targets_part = mix(images[part], labels[part], rows, classes=CLASSES, smoothing=0.1)
        assert torch.equal(images_part, whole[0][part])
        assert torch.equal(targets_part, whole[1][part])


def test_plan_gives_each_sample_the_draw_of_its_chunk():
    rows = mix_params(HOW, 1, 5, resolution=40, first=8, samples=24)
    law = {"mixup": 0.8, "cutmix": 1.0, "resolution": 40}
    expected = [draw(1, 5, 0, **law)] * 8 + [draw(1, 5, 1, **law)] * 16
    assert torch.equal(rows, torch.tensor(expected))


def test_without_mixing_there_is_no_plan_and_images_stay():
    images, labels = batch(3)
    rows = mix_params(Mixing(0.0, 0.0), 1, 5, resolution=40, first=0, samples=3)
    assert rows is None
    mixed, targets = mix(images, labels, rows, classes=CLASSES, smoothing=0.0)
    assert torch.equal(mixed, normalize(images))
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, CLASSES).float())
    assert draw(1, 5, 0, mixup=0.0, cutmix=0.0, resolution=40) == MixParams(1.0, 1.0, 0, 0, 0, 0)


def test_cutmix_pastes_exactly_its_share():
    images = torch.zeros(2, 40, 40, 3, dtype=torch.uint8)
    images[1] = 255
    black, white = normalize(images)[0, 0, 0, 0], normalize(images)[1, 0, 0, 0]
    shares = set()
    for chunk in range(200):
        ours = draw(0, 0, chunk, mixup=0.0, cutmix=1.0, resolution=40)
        mixed, targets = mix(images, torch.tensor([0, 1]), torch.tensor([ours] * 2), classes=2, smoothing=0.0)
        pasted = (mixed[0, 0] == white).sum().item()
        assert pasted + (mixed[0, 0] == black).sum().item() == 1600
        assert pasted == (mixed[1, 0] == black).sum().item() == round((1 - ours.lam) * 1600)
        assert ours.lam == 1 - pasted / 1600
        assert targets[0].tolist() == targets[1].tolist()[::-1] == pytest.approx([ours.lam, 1 - ours.lam], abs=1e-7)
        shares.add(pasted)
    assert len(shares) > 100


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_lam_follows_the_beta_distribution(alpha):
    keys = [(step, chunk) for step in range(500) for chunk in range(4)]
    lams = [draw(3, *key, mixup=alpha, cutmix=0.0, resolution=40).lam for key in keys]
    assert stats.kstest(lams, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert stats.kstest(lams, stats.beta(alpha * 2, alpha * 2).cdf).pvalue < 1e-6


def test_boxes_have_the_law_of_timms():
    ours = np.array([draw(3, step, 0, mixup=0.0, cutmix=1.0, resolution=64) for step in range(4000)])
    np.random.seed(0)
    theirs = [timm_mixup.cutmix_bbox_and_lam((3, 64, 64), np.random.beta(1, 1)) for _ in range(4000)]
    theirs = np.array([[lam, 1.0, *box] for box, lam in theirs])
    for column in (0, 2, 3, 4, 5):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01, MixParams._fields[column]
    heights, widths = ours[:, 3] - ours[:, 2], ours[:, 5] - ours[:, 4]
    unclipped = (ours[:, 2:] > 0).all(1) & (ours[:, 2:] < 64).all(1)
    assert (heights == widths)[unclipped].all()
    assert (heights[unclipped] % 2 == 0).all()
    centres = (ours[:, 2] + ours[:, 3])[unclipped], (ours[:, 4] + ours[:, 5])[unclipped]
    assert stats.spearmanr(*centres).pvalue > 0.01


def test_half_the_chunks_are_cutmix():
    cutmix = sum(draw(0, step, 0, mixup=0.8, cutmix=1.0, resolution=40).keep == 1.0 for step in range(4000))
    assert stats.binomtest(cutmix, 4000).pvalue > 0.01
    for step in range(50):
        assert draw(0, step, 0, mixup=0.0, cutmix=1.0, resolution=40).keep == 1.0
        assert draw(0, step, 0, mixup=0.8, cutmix=0.0, resolution=40).keep < 1.0


def test_a_draw_depends_on_seed_step_and_chunk_alone():
    law = {"mixup": 0.8, "cutmix": 1.0, "resolution": 224}
    keys = [(seed, step, chunk) for seed in range(3) for step in range(5) for chunk in range(8)]
    first = [draw(*key, **law) for key in keys]
    assert first == [draw(*key, **law) for key in reversed(keys)][::-1]
    assert len(set(first)) == len(keys)


def test_normalize_is_torchvisions():
    images, _ = batch(5, size=17)
    tensors = torch.stack([vision.to_tensor(image.numpy()) for image in images])
    expected = vision.normalize(tensors, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    ours = normalize(images)
    assert torch.allclose(ours, expected, atol=2e-6, rtol=0)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_timms(smoothing):
    labels = torch.tensor([0, 9, 3, 3])
    expected = timm_mixup.mixup_target(labels, CLASSES, lam=1.0, smoothing=smoothing)
    assert torch.allclose(soft_targets(labels, classes=CLASSES, smoothing=smoothing), expected)


def test_mixing_reads_nothing_back_to_the_host():
    """Tensors without contents: any step that needs a value, a wait on a GPU, fails."""
    images = torch.empty(8, 32, 32, 3, dtype=torch.uint8, device="meta")
    labels, rows = torch.empty(8, dtype=torch.int64, device="meta"), torch.empty(8, 6, device="meta")
    mixed, targets = mix(images, labels, rows, classes=CLASSES, smoothing=0.1)
    assert mixed.shape == (8, 3, 32, 32)
    assert targets.shape == (8, CLASSES)


def test_the_mixing_keys_of_two_steps_never_meet():
    law = {"mixup": 1.0, "cutmix": 0.0, "resolution": 8}
    assert draw(0, 0, (1 << 20) - 1, **law) != draw(0, 1, 0, **law)


@pytest.mark.parametrize(("height", "width", "side"), [(32, 48, 16), (30, 35, 14)])
def test_patches_are_those_of_a_convolution(height, width, side):
    """In float64, with rows and columns that are left over."""
    images = torch.randn(2, 3, height, width, dtype=torch.float64).to(memory_format=torch.channels_last)
    weight = torch.randn(5, 3, side, side, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(images, weight, stride=side).flatten(2).transpose(1, 2)
    given = cut(images, side)
    assert given.shape == (2, (height // side) * (width // side), 3 * side**2)
    assert torch.allclose(given @ weight.flatten(1).T, expected, atol=1e-12, rtol=0)


def test_patches_hold_the_mixed_pixels_in_their_type():
    """Exactly those that autocast would make of the images."""
    images, labels = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8), torch.arange(4)
    rows = torch.tensor([[0.7, 0.7, 0, 0, 0, 0]] * 2 + [[0.75, 1, 8, 24, 8, 24]] * 2)
    keys = {"classes": 4, "smoothing": 0.0}
    whole, targets = mix(images, labels, rows, **keys)
    patches, same = mix(images, labels, rows, patches=Patches(16, torch.bfloat16), **keys)
    assert torch.equal(patches.unflatten(2, (3, 16, 16))[:, 1], whole[:, :, :16, 16:].bfloat16())
    assert torch.equal(targets, same)
