"""The loaders: the same bits whatever the workers, ranks and restarts; exact evaluation; errors that arrive."""

import io
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from ffcv.reader import Reader
from PIL import Image

from ffcv_ops import decoders, loader, order
from ffcv_ops.errors import BadInput
from ffcv_ops.fields import describe

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Stage:
    name: str = "test"
    resolution: int = 48
    batch: int = 16
    crop: str = "rrc"
    rrc_scale: tuple = (0.08, 1.0)
    interpolation: str = "bicubic"
    least_downscale: float | None = None
    flip: float = 0.5
    augment: str = "three"
    three_ops: tuple = ("gray", "solarize", "blur")
    rand_config: str = "rand-m9-mstd0.5-inc1"
    jitter: float | None = 0.3
    erasing: float = 0.0
    repeats: int = 3
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_chunk: int = 8
    eval_crop: float = 1.0


STAGE = Stage()
SAMPLES = 96


def train(path, stage=STAGE, seed=5, **options):
    return loader.train_loader(path, SAMPLES, stage, seed=seed, **options)


def collected(batches):
    """Copies: FFCV reuses its buffers."""
    return [(images.clone(), labels.clone()) for images, labels in batches]


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.fixture(scope="module")
def reference(jpg_beton):
    return collected(train(jpg_beton, workers=1).epoch(0))


def test_shapes_and_types(reference):
    assert len(reference) == SAMPLES // STAGE.batch
    for images, labels in reference:
        assert images.shape == (16, 48, 48, 3)
        assert images.dtype == torch.uint8
        assert labels.shape == (16,)
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("workers", [2, 4])
def test_same_bits_for_any_number_of_workers(jpg_beton, reference, workers):
    assert_same(reference, collected(train(jpg_beton, workers=workers).epoch(0)))


def test_same_bits_from_another_loader_and_from_the_middle(jpg_beton, reference):
    assert_same(reference, collected(train(jpg_beton).epoch(0)))
    assert_same(reference[4:], collected(train(jpg_beton).epoch(0, first_batch=4)))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_cut_the_same_global_batches(jpg_beton, reference, world):
    shares = [collected(train(jpg_beton, rank=rank, world=world).epoch(0)) for rank in range(world)]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*shares, strict=True)]
    assert_same(reference, joined)


def test_page_cache_of_our_own_gives_the_same_bits(jpg_beton, reference):
    assert_same(reference, collected(train(jpg_beton, cache="process").epoch(0)))


def test_epochs_seeds_and_copies_differ(jpg_beton):
    batches = train(jpg_beton)
    first, second = collected(batches.epoch(0)), collected(batches.epoch(1))
    other_seed = collected(train(jpg_beton, seed=6).epoch(0))
    assert not torch.equal(first[0][0], second[0][0])
    assert not torch.equal(first[0][0], other_seed[0][0])
    ids = train(jpg_beton).of_epoch(0)
    images = torch.cat([images for images, _ in first])
    showings = {}
    for position, draw in enumerate(ids):
        showings.setdefault(draw % SAMPLES, []).append(images[position])
    assert {len(shown) for shown in showings.values()} == {3}
    assert all(not torch.equal(a, b) for a, b, _ in showings.values())


@pytest.mark.parametrize("fixture", ["jpg_beton", "raw_beton"])
def test_pixels_are_those_of_the_stored_image(request, tiles, fixture):
    """From the file on: decode with Pillow what stock FFCV stored, then the sample function on the array."""
    path = request.getfixturevalue(fixture)
    stage = replace(STAGE, repeats=1)
    batches = train(path, stage)
    ids = batches.of_epoch(3)
    metadata, data = Reader(str(path)).metadata["f0"], np.fromfile(path, np.uint8)
    images = torch.cat([images.clone() for images, _ in batches.epoch(3)])
    labels = torch.cat([labels.clone() for _, labels in batches.epoch(3)])
    for position, draw in enumerate(ids):
        index = draw % SAMPLES
        if fixture == "raw_beton":
            stored = tiles[index]
        else:
            stored = np.asarray(Image.open(io.BytesIO(data[metadata[index]["data_ptr"] :].tobytes())).convert("RGB"))
        assert stored.shape == tiles[index].shape
        shown = decoders.show(stored, plan=batches.decoder.plan, resolution=48, seed=5, draw=draw)
        np.testing.assert_array_equal(images[position].numpy(), shown)
        assert labels[position] == index % 5


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_sees_every_image_once(jpg_beton, world):
    labels, images = [], []
    for rank in range(world):
        batches = loader.eval_loader(jpg_beton, SAMPLES, STAGE, batch=10, rank=rank, world=world)
        for pixels, classes in collected(batches.epoch(0)):
            images.append(pixels)
            labels.append(classes)
    assert torch.cat(labels).tolist() == [index % 5 for index in range(SAMPLES)]
    assert len({image.numpy().tobytes() for image in torch.cat(images)}) == SAMPLES


def test_the_stages_words_reach_the_samples(jpg_beton, reference):
    """augment, rand_config and erasing: each changes the batch, the same way every time."""
    rand = replace(STAGE, augment="rand", jitter=None)
    stages = [
        rand,
        replace(rand, rand_config="rand-m2-mstd0.5-inc1"),
        replace(rand, erasing=0.5),
        replace(rand, augment="auto-v0"),
    ]
    first = [reference[0][0], *(collected(train(jpg_beton, stage).epoch(0))[0][0] for stage in stages)]
    for number, images in enumerate(first):
        assert not any(torch.equal(images, other) for other in first[:number])
    one, two = (collected(train(jpg_beton, stages[2], workers=workers).epoch(0)) for workers in (1, 2))
    assert_same(one, two)


def test_a_bad_rand_config_is_refused(jpg_beton):
    with pytest.raises(BadInput, match=r"rand_config 'rand-m9-x1': 'x1' is none of"):
        train(jpg_beton, replace(STAGE, augment="rand", rand_config="rand-m9-x1"))


def test_resolution_may_change_between_epochs(jpg_beton):
    batches = train(jpg_beton)
    batches.decoder.resolution = 32
    small = collected(batches.epoch(0))
    assert small[0][0].shape == (16, 32, 32, 3)
    assert_same(small, collected(train(jpg_beton, replace(STAGE, resolution=32)).epoch(0)))


def damaged(path, tmp_path, index):
    """A copy of the .beton in which the JPEG of one sample starts with zeros."""
    metadata, data = Reader(str(path)).metadata["f0"], np.fromfile(path, np.uint8)
    start = metadata[index]["data_ptr"]
    data[start : start + 2] = 0
    data.tofile(tmp_path / "damaged.beton")
    return tmp_path / "damaged.beton"


@pytest.mark.timeout(60)
def test_a_sample_that_does_not_decode_is_named(jpg_beton, tmp_path):
    """Stock FFCV hands out the pixels of another image instead."""
    path = damaged(jpg_beton, tmp_path, 17)
    path.with_suffix(".files.txt").write_text("".join(f"folder/{k}.jpg\n" for k in range(SAMPLES)))
    batches = loader.eval_loader(path, SAMPLES, STAGE, batch=16)
    with pytest.raises(BadInput, match=r"damaged\.beton: sample 17 folder/17\.jpg could not be decoded"):
        collected(batches.epoch(0))
    with pytest.raises(BadInput, match="sample 17"):
        collected(train(path, replace(STAGE, repeats=1)).epoch(2))


@pytest.mark.timeout(60)
def test_any_error_in_the_thread_reaches_the_caller(jpg_beton):
    """Stock FFCV prints a traceback and waits for ever."""
    batches = train(jpg_beton)
    batches.code = ([(lambda **arguments: 1 / 0, [])], [])
    with pytest.raises(ZeroDivisionError):
        next(batches.epoch(0))


@pytest.mark.timeout(60)
def test_leaving_an_epoch_early_leaves_no_thread(jpg_beton):
    batches = train(jpg_beton)
    collected(batches.epoch(0))  # the decoding threads, which are there as long as the loader, have come
    before = threading.active_count()
    for _ in range(20):
        for _batch in batches.epoch(0):
            break
    assert threading.active_count() == before


def test_workers_do_not_change_torchs_threads(jpg_beton):
    before = torch.get_num_threads()
    train(jpg_beton, workers=1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "stage, world, message",
    [
        (replace(STAGE, batch=200, mix_chunk=200), 1, "do not fill one batch of 200"),
        (STAGE, 3, "does not divide among 3 processes"),
        (STAGE, 16, "even batch per process"),
    ],
)
def test_impossible_batches_are_refused(jpg_beton, stage, world, message):
    with pytest.raises(BadInput, match=message):
        train(jpg_beton, stage, world=world)


def test_steps_of_an_epoch(jpg_beton):
    assert len(train(jpg_beton)) == 6
    assert len(train(jpg_beton, world=2)) == 6
    assert len(loader.eval_loader(jpg_beton, SAMPLES, STAGE, batch=10)) == 10
    assert describe(jpg_beton).samples == SAMPLES
    assert len(order.showings(SAMPLES, seed=0, epoch=0, repeats=3)) == SAMPLES
