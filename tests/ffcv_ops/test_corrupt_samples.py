"""Bad samples: seen in every bit, named or replaced and counted, the same on any number of workers and ranks."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ffcv_ops import order, stored_images
from ffcv_ops.corrupt_samples import CorruptSamples
from ffcv_ops.decoders import SampleError
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import open_index
from tests.ffcv_ops import loading
from tests.ffcv_ops.loading import SAMPLES, collected
from training import loading as loader

pytestmark = pytest.mark.timeout(240)

STAGE = replace(loading.STAGE, resolution=32, repeats=1)
train = partial(loading.train, stage=STAGE)
BAD = (3, 17, 64)


@pytest.fixture
def good(tmp_path, encoded, write_beton):
    return write_beton(tmp_path / "x.beton", encoded)


@pytest.fixture
def damaged(good, flip_bit):
    for sample in BAD:
        flip_bit(good, sample)
    return good


@pytest.mark.parametrize("cache", ["os", "process"])
@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_every_flipped_bit_stops_the_run(tmp_path, tiles, write_beton, flip_bit, mode, cache):
    """Most of them decode without a warning (raw: all)."""
    samples = [((decoders_input(tile, mode),), k % 5) for k, tile in enumerate(tiles[:16])]
    path, bits = write_beton(tmp_path / "x.beton", samples), np.random.default_rng(0)
    for sample in range(0, 16, 2):
        bit = int(bits.integers(0, 8 * len(samples[sample][0][0].data)))
        flip_bit(path, sample, bit)
        batches = loader.eval_loader(path, 16, STAGE, batch=16, placement=loader.Placement(cache=cache))
        with pytest.raises(UserError, match=rf"x\.beton: sample {sample} x/{sample}\.jpg is not what was written"):
            collected(batches.epoch(0))
        flip_bit(path, sample, bit)
    collected(loader.eval_loader(path, 16, STAGE, batch=16, placement=loader.Placement(cache=cache)).epoch(0))


def decoders_input(tile, mode):
    from conversion.encode import encode_rgb

    return encode_rgb(tile, mode=mode, quality=90)


def test_without_checksums_what_libjpeg_warns_of_is_seen(good, encoded):
    """A JPEG whose second half is zeros: libjpeg fills in gray and warns."""
    image = encoded[17][0][0].data
    content = good.read_bytes()
    place = content.index(image)
    half = len(image) // 2
    good.write_bytes(content[: place + half] + bytes(len(image) - half) + content[place + len(image) :])
    good.with_suffix(".json").unlink()
    good.with_suffix(".xxh64").unlink()
    with pytest.raises(UserError, match=r"sample 17 x/17\.jpg could not be decoded"):
        collected(loader.eval_loader(good, SAMPLES, STAGE, batch=32).epoch(0))


def test_stop_is_the_default(damaged):
    with pytest.raises(UserError, match=r"sample (3|17|64) x/\d+\.jpg is not what was written"):
        collected(train(damaged).epoch(0))
    with pytest.raises(UserError, match=r"sample 3 "):
        collected(loader.eval_loader(damaged, SAMPLES, STAGE, batch=8).epoch(0))


def test_replaced_and_counted(tmp_path, encoded, good, write_beton, flip_bit):
    """Everything but the three bad samples is as in the good file; those are what the replacement's sample id shows."""
    before = train(good)
    ids, expected = before.sample_ids(0).copy(), torch.cat([images.clone() for images, _ in before.epoch(0)])
    for sample in BAD:
        flip_bit(good, sample)
    batches = train(good, bad_limit=0.05)
    found, counts = [], []
    for images, labels in batches.epoch(0):
        found.append((images.clone(), labels.clone()))
        counts.append(batches.corrupt_samples.replaced)
    images, labels = (torch.cat(part) for part in zip(*found, strict=True))
    assert (counts[-1], set(batches.corrupt_samples.times)) == (3, set(BAD))
    for place, draw in enumerate(ids.tolist()):
        if draw % SAMPLES not in BAD:
            assert torch.equal(images[place], expected[place])
            assert labels[place] == draw % SAMPLES % 5
            continue
        assert counts[place // 16] - (counts[place // 16 - 1] if place >= 16 else 0) > 0
        while draw % SAMPLES in BAD:
            draw = order.replacement(draw, seed=5, num_samples=SAMPLES)
        assert labels[place] == draw % SAMPLES % 5
        assert torch.equal(images[place], shown(good, batches, draw))


def shown(path, batches, draw):
    """The image of one sample id, out of a batch of its own."""
    alone = train(path)
    alone.sample_ids = lambda epoch: np.array([draw])
    ((images, _),) = collected(alone.epoch(0))
    return images[0]


def test_the_same_replacements_everywhere(damaged):
    one = collected(train(damaged, bad_limit=0.1, workers=1).epoch(1))
    again = train(damaged, bad_limit=0.1, workers=4)
    for (images, labels), (others, other_labels) in zip(one, collected(again.epoch(1)), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    assert again.corrupt_samples.replaced == 3
    ranks = [train(damaged, bad_limit=0.1, rank=rank, world=2) for rank in range(2)]
    shares = [collected(rank.epoch(1)) for rank in ranks]
    for (images, labels), *parts in zip(one, *shares, strict=True):
        assert torch.equal(images, torch.cat([part[0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[1] for part in parts]))
    assert sum(rank.corrupt_samples.replaced for rank in ranks) == 3
    paged = collected(train(damaged, bad_limit=0.1, cache="process").epoch(1))
    assert all(torch.equal(images, others) for (images, _), (others, _) in zip(one, paged, strict=True))


def test_each_epoch_counts_anew(damaged):
    batches = train(damaged, bad_limit=0.1)
    for epoch in range(2):
        collected(batches.epoch(epoch))
        assert batches.corrupt_samples.replaced == 3


@pytest.mark.parametrize("limit, stops", [(0.0, True), (0.02, True), (0.03, False)])
def test_over_the_limit_the_run_stops_and_names_the_worst(damaged, limit, stops):
    """96 samples: 0.02 allows 2, 0.03 allows 3."""
    batches = train(damaged, bad_limit=limit, workers=1)
    if not stops:
        collected(batches.epoch(0))
        assert "sample 17 x/17.jpg (1x)" in batches.corrupt_samples.most_frequent()
        return
    with pytest.raises(UserError, match=rf"an epoch's 96 samples .* data\.bad_limit {limit:g} allows: sample \d+ x/"):
        collected(batches.epoch(0))


def test_all_are_bad(good, flip_bit):
    """It ends, even where everything may be replaced."""
    for sample in range(SAMPLES):
        flip_bit(good, sample)
    with pytest.raises(UserError, match="64 images that were to replace a corrupt one are corrupt too"):
        collected(train(good, bad_limit=1.0).epoch(0))


def test_a_replacement_that_is_corrupt_is_no_further_one(good):
    """Two samples of a batch, one of which needs three replacements: 2 of 96, and the limit is 2."""
    policy = CorruptSamples(open_index(good), seed=5, limit=0.02)
    policy.begin(96)
    draws = np.arange(16)
    for places in ([3, 7], [7], [7]):
        draws = policy.replace(0, draws, SampleError(np.array(places), np.full(len(places), stored_images.CHANGED)))
    assert (policy.replaced, policy.times.total()) == (0, 4)
    policy.yielded(0)
    assert policy.replaced == 2
    with pytest.raises(UserError, match="3 of an epoch's 96 samples had to be replaced"):
        policy.replace(1, np.arange(16, 32), SampleError(np.array([0]), np.array([stored_images.CHANGED])))


def test_replacements_are_spread_over_the_images():
    replacements = [order.replacement(7 * 1000 + 3, seed=seed, num_samples=1000) for seed in range(2000)]
    assert all(draw // 1000 == 7 for draw in replacements)
    counts = np.histogram(np.array(replacements) % 1000, 10)[0]
    assert abs(counts - 200).max() < 60  # 4 sigma
    assert stored_images.FAULTS.keys() == {stored_images.CORRUPT, stored_images.UNREAD, stored_images.CHANGED}
