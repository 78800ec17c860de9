"""The epoch order against the definition of the official samplers (facts 3.6) and by its invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_ops import order

IMAGENET = 1_281_167


def test_shuffle_is_a_permutation_of_seed_and_epoch():
    first = order.shuffled(1000, seed=1, epoch=2)
    assert sorted(first) == list(range(1000))
    np.testing.assert_array_equal(first, order.shuffled(1000, seed=1, epoch=2))
    for other in (order.shuffled(1000, seed=1, epoch=3), order.shuffled(1000, seed=2, epoch=2)):
        assert (first == other).mean() < 0.02
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    at_once=st.integers(1, 8),
    epoch=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_windows_need_few_pages_at_a_time(sizes, at_once, epoch):
    """A permutation in which the images of `at_once` pages come, all of them, before the next pages are touched."""
    page_of = np.repeat(np.arange(len(sizes)) * 3 + 5, sizes)  # page numbers have gaps
    windows = order.PageWindows(page_of, at_once)
    shuffle = order.shuffled(len(page_of), seed=3, epoch=epoch, windows=windows)
    assert sorted(shuffle) == list(range(len(page_of)))
    seen, left = [], list(shuffle)
    while left:
        pages = set()
        while left and len(pages | {page_of[left[0]]}) <= at_once:
            pages.add(page_of[left.pop(0)])
        assert not pages & set(seen)
        seen += pages
    assert len(seen) == len(sizes)


def test_windows_shuffle_pages_and_images():
    page_of = np.repeat(np.arange(100), 50)
    windows = order.PageWindows(page_of, 10)
    first, second = (order.shuffled(5000, seed=1, epoch=epoch, windows=windows) for epoch in (0, 1))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(page_of[first], np.arange(5000))[0, 1]) < 0.3  # pages do not come in the file's order
    assert len(set(page_of[first[:100]])) == 10  # images of all ten pages from the start
    assert abs(np.corrcoef(first[:500] % 50, np.arange(500))[0, 1]) < 0.15
    every_page = order.PageWindows(page_of, 100)
    plain = order.shuffled(5000, seed=1, epoch=0)
    np.testing.assert_array_equal(order.shuffled(5000, seed=1, epoch=0, windows=every_page), plain)


def test_repeated_augmentation_of_imagenet():
    """First 427,008 shuffled images, three times each, in a row; 625 batches of 2048."""
    ids = order.epoch_sample_ids(IMAGENET, seed=0, epoch=7, repeats=3)
    images, copies = ids % IMAGENET, ids // IMAGENET
    assert len(ids) == 1_281_024
    shuffle = order.shuffled(IMAGENET, seed=0, epoch=7)
    np.testing.assert_array_equal(images, np.repeat(shuffle[:427_008], 3))
    np.testing.assert_array_equal(copies, np.tile([21, 22, 23], 427_008))
    arranged = order.arrange(ids, batch=2048, chunk=256)
    assert len(arranged) == 625 * 2048
    assert set(arranged.tolist()) == set(ids[: 625 * 2048].tolist())


@pytest.mark.parametrize("processes", [1, 8, 32])
def test_an_imagenet_epoch_is_the_official_samplers(processes):
    """The definition: each image of the shuffle three times in a row; process r of W takes r, r + W, ... and keeps the
    first floor(floor(N / 256) * 256 / W). The official runs had 8 x 256 and 32 x 64 samples a step."""
    chunk, shuffle = 2048 // processes, order.shuffled(IMAGENET, seed=0, epoch=7)
    ids = order.epoch_sample_ids(IMAGENET, seed=0, epoch=7, repeats=3)
    assert len(ids) == order.epoch_length(IMAGENET, repeats=3) == IMAGENET // 256 * 256
    arranged = order.arrange(ids, batch=2048, chunk=chunk)
    images, shown = np.unique(ids % IMAGENET, return_counts=True)
    assert (len(images), set(shown)) == (427_008, {3})
    by_step = arranged.reshape(625, processes, chunk)
    for process in {0, processes // 3, processes - 1}:
        sampler = np.repeat(shuffle, 3)[process::processes][: IMAGENET // 256 * 256 // processes]
        assert len(sampler) // chunk == 625
        for step in (0, 311, 624):
            batch = sampler[step * chunk : (step + 1) * chunk]
            pairs = np.stack([batch, batch[::-1]], axis=1)[: chunk // 2]  # the official code flips the batch to mix it
            np.testing.assert_array_equal(by_step[step, process] % IMAGENET, pairs.reshape(-1))
    for world in (1, 8, 32):
        shares = [order.rank_share(arranged, batch=2048, rank=rank, world=world) for rank in range(world)]
        whole = np.stack([share.reshape(625, -1) for share in shares], axis=1)
        np.testing.assert_array_equal(whole.reshape(-1), arranged)


@pytest.mark.parametrize("world", [1, 2, 8])
def test_ranks_get_what_the_official_sampler_gives_its_eight_processes(world):
    """Process c of 8 holds views c, c + 8, ...; partners of its flipped batch are neighbours here."""
    ids = order.epoch_sample_ids(20_000, seed=3, epoch=1, repeats=3)
    arranged = order.arrange(ids, batch=512, chunk=64)
    shares = [order.rank_share(arranged, batch=512, rank=r, world=world) for r in range(world)]
    step = 5
    whole = np.concatenate([s.reshape(-1, 512 // world)[step] for s in shares])
    for process in range(8):
        official = ids[process::8][step * 64 : (step + 1) * 64]
        ours = whole[process * 64 : (process + 1) * 64]
        pairs = {frozenset((official[i], official[63 - i])) for i in range(64)}
        assert {frozenset(pair) for pair in ours.reshape(32, 2).tolist()} == pairs
        assert ours[0] == official[0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 5), st.integers(0, 40))
def test_arrange_keeps_each_batch_and_follows_the_definition(chunk, chunks, steps, extra):
    batch = chunk * chunks
    ids = np.arange(steps * batch + min(extra, batch - 1))
    arranged = order.arrange(ids, batch=batch, chunk=chunk).reshape(steps, chunks, chunk)
    for k, c, q in np.ndindex(arranged.shape):
        within = q // 2 if q % 2 == 0 else chunk - 1 - q // 2
        assert arranged[k, c, q] == k * batch + c + chunks * within


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 500), st.integers(1, 9))
def test_evaluation_counts_every_image_once(num_samples, world):
    shares = [order.evaluation_share(num_samples, rank=r, world=world) for r in range(world)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(num_samples))


def test_draw_ids_differ_between_epochs_and_copies():
    seen = [order.epoch_sample_ids(600, seed=0, epoch=e, repeats=3) for e in range(4)]
    everything = np.concatenate(seen)
    assert len(np.unique(everything)) == len(everything)
    assert all((ids % 600 < 600).all() for ids in seen)


def test_small_data_sets_are_not_rounded_away():
    assert len(order.epoch_sample_ids(100, seed=0, epoch=0, repeats=3)) == 100
    assert len(order.epoch_sample_ids(300, seed=0, epoch=0, repeats=3)) == 256
    assert len(order.epoch_sample_ids(300, seed=0, epoch=0, repeats=1)) == 300
    assert [order.epoch_length(n, repeats=r) for n, r in ((100, 3), (300, 3), (300, 1))] == [100, 256, 300]
