"""The loaders: the same bits whatever the workers, ranks and restarts; exact evaluation; errors that arrive."""

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from ffcv.reader import Reader
from PIL import Image

from conversion import beton
from conversion.convert import WriteOptions, convert
from conversion.encode import ImageConfig, encode_rgb
from conversion.sources import image_folder
from ffcv_ops import host, order
from ffcv_ops.errors import UserError
from ffcv_ops.loader import decoding_threads
from ffcv_ops.rng import RandomKey
from ffcv_ops.storage.index import column, describe, pages_of
from ffcv_ops.transform import transform_image
from tests.ffcv_ops.loading import SAMPLES, STAGE, assert_same, collected, train
from training import loading as loader

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def paged_beton(tmp_path_factory, photos):
    """Raw images of 140 kB on 2 MiB pages, 14 each: (path, number of samples)."""
    images = [np.ascontiguousarray(photos["china"][k : k + 180, k : k + 260]) for k in range(96)]
    path = tmp_path_factory.mktemp("paged") / "paged.beton"
    encoded = [(encode_rgb(image, mode="raw", quality=90), k % 5) for k, image in enumerate(images)]
    beton.write(path, [((one,), label) for one, label in encoded], capacity=96, page_size=2**21)
    return path, 96


@pytest.fixture(scope="module")
def pyramid_beton(tmp_path_factory, photos):
    """Paths of a .beton with levels 500, 200 and 120 and of one without, and their number of samples."""
    folder = tmp_path_factory.mktemp("pyramid")
    for split in ("train", "val"):
        for k, (name, photo) in enumerate(photos.items()):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(2):
                part = photo[number * 20 : number * 20 + 420, : 420 + 60 * k]
                Image.fromarray(part).save(folder / "images" / split / name / f"{number}.png")
    for out, levels in (("plain", None), ("pyramid", (500, 200, 120))):
        root = folder / "images"
        image = ImageConfig(max_side=500, levels=levels)
        convert(image_folder(str(root)), "train", folder / f"{out}.beton", image, WriteOptions(2**21))
    return folder / "pyramid.beton", folder / "plain.beton", 2 * len(photos)


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
    assert_same(reference[4:], collected(train(jpg_beton).epoch(0, start=4)))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_cut_the_same_global_batches(jpg_beton, reference, world):
    shares = [collected(train(jpg_beton, rank=rank, world=world).epoch(0)) for rank in range(world)]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*shares, strict=True)]
    assert_same(reference, joined)


def test_page_cache_of_our_own_gives_the_same_bits(jpg_beton, reference):
    assert_same(reference, collected(train(jpg_beton, cache="process").epoch(0)))


def test_two_loaders_at_the_same_time(jpg_beton, reference):
    """As when an evaluation begins while the next epoch is loaded ahead; Numba's own threads would abort."""
    two = train(jpg_beton, workers=2), train(jpg_beton, workers=2)
    batches = []
    for pair in zip(*(one.epoch(0) for one in two), strict=True):
        batches.append([(images.clone(), labels.clone()) for images, labels in pair])
    for each in zip(*batches, strict=True):
        assert_same(reference, list(each))


def test_pages_may_be_shuffled_in_parts(paged_beton, tmp_path):
    """The same images, other order; the same global batches on every number of ranks, from either cache."""
    path, samples = paged_beton
    stage = replace(STAGE, repeats=1, resolution=32)

    def epoch(number=0, **placement):
        batches = loader.train_loader(
            path, samples, stage, seed=5, placement=loader.Placement(**placement), shuffle_pages=2
        )
        return collected(batches.epoch(number)), batches.sample_ids(number)

    whole, ids = epoch()
    page = pages_of(column(Reader(str(path)), "image"), 2**21)[ids % samples]
    assert len(set(page)) > 4
    changes = [len(set(page[start : start + 16])) for start in range(0, len(page), 16)]
    assert max(changes) <= 4  # two pages, or four where a batch sees the end of one window and the next one's begin
    shares = [epoch(rank=rank, world=2)[0] for rank in range(2)]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*shares, strict=True)]
    assert_same(whole, joined)
    assert_same(whole, epoch(cache="process")[0])
    assert not torch.equal(whole[0][0], epoch(1)[0][0][0])


LESS = {
    "src": {"crop": "src"},
    "rrc": {"crop": "rrc", "rrc_scale": (0.6, 1.0)},
    "luma alone": {"crop": "src", "augment": "three(gray)"},
}


@pytest.mark.parametrize("words", LESS.values(), ids=LESS)
@pytest.mark.parametrize("levels", [False, True], ids=["one level", "pyramid"])
def test_less_is_decoded_where_it_suffices(pyramid_beton, levels, words):
    """`min_oversampling` none gives the bytes of the file without levels; 1.2 gives nearly them, from less."""
    pyramid, plain, samples = pyramid_beton
    path = pyramid if levels else plain
    exact = replace(STAGE, repeats=1, resolution=64, jitter=None, augment="three(solarize)", batch=4, mix_chunk=4)
    exact = replace(exact, **words)
    less = replace(exact, min_oversampling=1.2)

    def epoch(path, stage, **placement):
        batches = loader.train_loader(path, samples, stage, seed=5, placement=loader.Placement(**placement))
        return collected(batches.epoch(0))

    whole = epoch(plain, exact)
    assert_same(whole, epoch(path, exact))
    small = epoch(path, less)
    assert_same(small, epoch(path, less, workers=1))
    if levels:
        assert_same(whole, epoch(path, exact, cache="process"))
        with pytest.raises(UserError, match=r"cache=process .* image, image_200, image_120 .* cache=os"):
            epoch(path, less, cache="process")
    else:
        assert_same(small, epoch(path, less, cache="process"))
    for (images, labels), (others, other_labels) in zip(whole, small, strict=True):
        assert torch.equal(labels, other_labels)
        difference = images.double() - others.double()
        assert 0 < difference.abs().mean() < 2
        assert 10 * torch.log10(255**2 / difference.square().mean()) > 36
    read = loader.train_loader(path, samples, less, seed=5).decoder.levels
    assert [level["width"].max() for level in read] == ([500, 200, 120] if levels else [500])


def test_epochs_seeds_and_copies_differ(jpg_beton):
    batches = train(jpg_beton)
    first, second = collected(batches.epoch(0)), collected(batches.epoch(1))
    other_seed = collected(train(jpg_beton, seed=6).epoch(0))
    assert not torch.equal(first[0][0], second[0][0])
    assert not torch.equal(first[0][0], other_seed[0][0])
    ids = train(jpg_beton).sample_ids(0)
    images = torch.cat([images for images, _ in first])
    views = {}
    for position, draw in enumerate(ids):
        views.setdefault(draw % SAMPLES, []).append(images[position])
    assert {len(shown) for shown in views.values()} == {3}
    assert all(not torch.equal(a, b) for a, b, _ in views.values())


@pytest.mark.parametrize("fixture", ["jpg_beton", "raw_beton"])
def test_pixels_are_those_of_the_stored_image(request, tiles, fixture):
    """From the file on: decode with Pillow what stock FFCV stored, then the sample function on the array."""
    path = request.getfixturevalue(fixture)
    stage = replace(STAGE, repeats=1)
    batches = train(path, stage)
    ids = batches.sample_ids(3)
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
        shown = transform_image(stored, batches.decoder.params, resolution=48, key=RandomKey(5, draw))
        np.testing.assert_array_equal(images[position].numpy(), shown)
        assert labels[position] == index % 5


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_sees_every_image_once(jpg_beton, world):
    labels, images = [], []
    for rank in range(world):
        batches = loader.eval_loader(
            jpg_beton, SAMPLES, STAGE, batch=10, placement=loader.Placement(rank=rank, world=world)
        )
        for pixels, classes in collected(batches.epoch(0)):
            images.append(pixels)
            labels.append(classes)
    assert torch.cat(labels).tolist() == [index % 5 for index in range(SAMPLES)]
    assert len({image.numpy().tobytes() for image in torch.cat(images)}) == SAMPLES


def test_the_stages_words_reach_the_samples(jpg_beton, reference):
    """augment and erasing: each changes the batch, the same way every time."""
    rand = replace(STAGE, augment="rand", jitter=None)
    stages = [
        rand,
        replace(rand, augment="rand(rand-m2-mstd0.5-inc1)"),
        replace(rand, erasing=0.5),
        replace(rand, augment="auto-v0"),
    ]
    first = [reference[0][0], *(collected(train(jpg_beton, stage).epoch(0))[0][0] for stage in stages)]
    for number, images in enumerate(first):
        assert not any(torch.equal(images, other) for other in first[:number])
    one, two = (collected(train(jpg_beton, stages[2], workers=workers).epoch(0)) for workers in (1, 2))
    assert_same(one, two)


def test_a_bad_rand_config_is_refused(jpg_beton):
    with pytest.raises(UserError, match=r"rand: config 'rand-m9-x1': 'x1' is none of"):
        train(jpg_beton, replace(STAGE, augment="rand(rand-m9-x1)"))


def test_resolution_may_change_between_epochs(jpg_beton):
    batches = train(jpg_beton)
    small = collected(batches.epoch(0, resolution=32))
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
    with pytest.raises(UserError, match=r"damaged\.beton: sample 17 folder/17\.jpg could not be decoded"):
        collected(batches.epoch(0))
    with pytest.raises(UserError, match="sample 17"):
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
    before = set(threading.enumerate())
    for _ in range(20):
        for _batch in batches.epoch(0):
            break
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(
    "workers, device, threads", [("auto", "cpu", 6), ("auto", "cuda", 5), (4, "cuda", 4), (9, "cpu", 6), (1, "cpu", 1)]
)
def test_decoding_threads(monkeypatch, workers, device, threads):
    """A core is left to the thread that launches a GPU's kernels, unless a number says otherwise."""
    monkeypatch.setattr(host, "cores", lambda: (6, None))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert decoding_threads(workers, torch.device(device)) == threads


def test_workers_do_not_change_torchs_threads(jpg_beton):
    """Stock FFCV gives torch as many as decode, in every epoch."""
    before = torch.get_num_threads()
    for workers in (1, 2):
        for _ in train(jpg_beton, workers=workers).epoch(0):
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
    with pytest.raises(UserError, match=message):
        train(jpg_beton, stage, world=world)


def test_steps_of_an_epoch(jpg_beton):
    assert len(train(jpg_beton)) == 6
    assert len(train(jpg_beton, world=2)) == 6
    assert len(loader.eval_loader(jpg_beton, SAMPLES, STAGE, batch=10)) == 10
    assert describe(jpg_beton).samples == SAMPLES
    assert len(order.epoch_sample_ids(SAMPLES, seed=0, epoch=0, repeats=3)) == SAMPLES
