"""What holds for every size, seed and place: of draws, crops, orders, and of going on in the middle."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from config.recipe import BASE_RECIPE, load_recipe
from ffcv_ops import order, rng
from ffcv_ops.kernels import crops
from ffcv_ops.rng import RandomKey
from training import loading as loader

SEEDS, SAMPLE_IDS, STREAMS = st.integers(0, 2**62), st.integers(0, 2**55), st.integers(0, 2**20)
SAMPLES = 96  # of jpg_beton


# --- rng -------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(SEEDS, SAMPLE_IDS, STREAMS, st.integers(1, 2**31))
def test_numbers_lie_in_their_ranges(seed, sample_id, stream, n):
    key = RandomKey(seed, sample_id)
    assert 0 <= rng.uniform(key, stream) < 1
    assert 0 <= rng.uniform_int(key, stream, n) < n
    assert np.isfinite(rng.normal(key, stream))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(SEEDS, SAMPLE_IDS, st.lists(STREAMS, min_size=2, max_size=2, unique=True))
def test_two_streams_know_nothing_of_each_other(seed, sample_id, streams):
    """4,000 pairs fill a grid of 8 x 8 evenly: both are uniform, and independent."""
    keys = [RandomKey(seed, sample_id + k) for k in range(4000)]
    first, second = (np.array([rng.uniform(key, stream) for key in keys]) for stream in streams)
    cells = np.histogram2d(first, second, bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-5


@settings(max_examples=100, deadline=None)
@given(SEEDS, SAMPLE_IDS, STREAMS, st.integers(1, 2**20))
def test_every_argument_is_part_of_the_key(seed, sample_id, stream, step):
    here = rng.bits(RandomKey(seed, sample_id), stream)
    moved = ((seed + step, sample_id, stream), (seed, sample_id + step, stream), (seed, sample_id, stream + step))
    others = [rng.bits(RandomKey(*place[:2]), place[2]) for place in moved]
    assert len({int(here), *map(int, others)}) == 4
    changed = [int(here ^ other).bit_count() for other in others]
    assert all(8 <= bits <= 56 for bits in changed), "some bits hardly depend on an argument"


# --- crops -----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(8, 2000), st.integers(8, 2000), st.floats(0.05, 1), st.floats(0.05, 1), SEEDS, SAMPLE_IDS)
def test_a_resized_crop_keeps_to_its_area_and_aspect(height, width, one, other, seed, draw):
    """Up to the rounding of its sides, or it is the centered largest box of an allowed aspect."""
    low, high = sorted((one, other))
    view = crops.random_resized_crop(height, width, 64, low, high, RandomKey(seed, draw))
    top, left, h, w = view[:4]
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    most, least = ((w + 0.5) / (h - 0.5), (w - 0.5) / (h + 0.5))
    assert least <= crops.RATIO[1] * 1.001
    assert most >= crops.RATIO[0] * 0.999
    fallback = (top, left) == ((height - h) // 2, (width - w) // 2) and (h == height or w == width)
    within = (h - 0.5) * (w - 0.5) <= high * height * width and (h + 0.5) * (w + 0.5) >= low * height * width
    assert within or fallback


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(8, 400), SEEDS, SAMPLE_IDS)
def test_a_simple_crop_overhangs_by_its_padding_at_most(height, width, size, seed, draw):
    view = crops.simple_random_crop(height, width, size, RandomKey(seed, draw))
    assert min(view.full_height, view.full_width) == size
    assert -crops.SRC_PADDING <= view.top <= view.full_height + crops.SRC_PADDING - size
    assert -crops.SRC_PADDING <= view.left <= view.full_width + crops.SRC_PADDING - size
    assert view[:4] == (0, 0, height, width)


# --- orders ----------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw):
    """(samples, epoch, repeats, ranks, batch, chunk) such that all divisions come out even."""
    ranks, chunk = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.sampled_from([2, 4, 8]))
    batch = ranks * chunk * draw(st.integers(1, 3))
    return draw(st.integers(batch, 600)), draw(st.integers(0, 10**5)), draw(st.integers(1, 4)), ranks, batch, chunk


@settings(max_examples=150, deadline=None)
@given(plans(), SEEDS)
def test_each_image_is_shown_as_often_as_it_should(plan, seed):
    samples, epoch, repeats, _, batch, chunk = plan
    ids = order.epoch_sample_ids(samples, seed=seed, epoch=epoch, repeats=repeats)
    arranged = order.arrange(ids, batch=batch, chunk=chunk)
    assert len(ids) == order.epoch_length(samples, repeats=repeats)
    assert len(arranged) == len(ids) // batch * batch
    assert sorted(arranged) == sorted(ids[: len(arranged)])
    times = Counter((ids % samples).tolist())
    whole, rest = divmod(len(ids), repeats)
    assert sorted(times.values(), reverse=True) == [repeats] * whole + [rest] * (rest > 0)
    assert len(set(ids.tolist())) == len(ids), "two views with the same random numbers"


@settings(max_examples=150, deadline=None)
@given(plans(), SEEDS)
def test_ranks_part_the_same_global_batches(plan, seed):
    samples, epoch, repeats, ranks, batch, chunk = plan
    ids = order.epoch_sample_ids(samples, seed=seed, epoch=epoch, repeats=repeats)
    arranged = order.arrange(ids, batch=batch, chunk=chunk)
    shares = [order.rank_share(arranged, batch=batch, rank=rank, world=ranks) for rank in range(ranks)]
    together = np.stack([share.reshape(-1, batch // ranks) for share in shares], axis=1)
    np.testing.assert_array_equal(together.reshape(-1), arranged)


@settings(max_examples=150, deadline=None)
@given(plans(), SEEDS, st.data())
def test_going_on_shows_what_was_left(plan, seed, data):
    """From batch k on, on another number of ranks: nothing lost, nothing twice."""
    samples, epoch, repeats, ranks, batch, chunk = plan
    ids = order.epoch_sample_ids(samples, seed=seed, epoch=epoch, repeats=repeats)
    arranged = order.arrange(ids, batch=batch, chunk=chunk)
    k = data.draw(st.integers(0, len(arranged) // batch))
    before = [order.rank_share(arranged, batch=batch, rank=r, world=ranks)[: k * batch // ranks] for r in range(ranks)]
    after = order.rank_share(arranged, batch=batch, rank=0, world=1)[k * batch :]
    assert sorted([*np.concatenate(before), *after]) == sorted(arranged)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 10**6), SEEDS)
def test_a_shuffle_is_one_and_its_own(samples, epoch, seed):
    shuffle = order.shuffled(samples, seed=seed, epoch=epoch)
    assert sorted(shuffle) == list(range(samples))
    if samples > 20:
        assert not np.array_equal(shuffle, np.arange(samples))
        assert not np.array_equal(shuffle, order.shuffled(samples, seed=seed, epoch=epoch + 1))
        assert not np.array_equal(shuffle, order.shuffled(samples, seed=seed + 1, epoch=epoch))


# --- going on, in pixels ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(jpg_beton):
    """Loaders of three unlike stages with a seed of each, and all that they show in epochs 0 and 1."""
    stage = load_recipe(BASE_RECIPE, {"stage.batch": "16", "stage.mix_chunk": "8", "stage.resolution": "16"}).stages[0]
    others = {"repeats": 1, "augment": "rand"}, {"crop": "src", "mixup": 0}
    kinds = [stage, *(dataclasses.replace(stage, **other) for other in others)]
    loaders = [
        loader.train_loader(jpg_beton, SAMPLES, kind, seed=k, placement=loader.Placement(workers=2))
        for k, kind in enumerate(kinds)
    ]
    return [(one, [_shown(one, epoch) for epoch in (0, 1)]) for one in loaders]


def _shown(batches, epoch, first=0):
    return [(images.numpy().copy(), labels.numpy().copy()) for images, labels in batches.epoch(epoch, first)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2), st.integers(0, 1), st.integers(0, 6))
def test_an_epoch_from_batch_k_is_the_rest_of_the_epoch(stages, stage, epoch, first):
    batches, whole = stages[stage]
    rest = _shown(batches, epoch, first)
    assert len(whole[epoch]) == 6
    assert len(rest) == 6 - first
    for (images, labels), (other_images, other_labels) in zip(whole[epoch][first:], rest, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def test_stages_and_epochs_show_different_pixels(stages):
    """Else the test above would hold for a loader that always shows the same."""
    firsts = [epochs[epoch][0][0] for _, epochs in stages for epoch in (0, 1)]
    assert all((one != other).mean() > 0.5 for k, one in enumerate(firsts) for other in firsts[:k])
