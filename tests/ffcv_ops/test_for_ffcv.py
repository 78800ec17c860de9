"""Our operations in stock FFCV's loader: the pixels of our own, and of Pillow, timm and torchvision; repeatable."""

import io
import shutil
import threading

import numba
import numpy as np
import pytest
from ffcv.fields.decoders import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from PIL import Image

from ffcv_ops import for_ffcv, rng
from ffcv_ops.augment import load
from ffcv_ops.augment.policies import random_erasing
from ffcv_ops.errors import UserError
from ffcv_ops.for_ffcv import Augment, set_epoch
from ffcv_ops.kernels import crops
from ffcv_ops.rng import RandomKey
from ffcv_ops.transform import TransformParams, transform_image

SAMPLES, SIZE, SEED = 96, 32, 5
TEXT = "three | jitter(0.3)"
CHAIN = load.compiled(load.from_text(TEXT), TransformParams().interpolation)


@pytest.fixture
def interpreted():
    """FFCV compiles nothing: its loader runs our small functions as they are, which takes no seconds."""
    Compiler.set_enabled(False)
    yield
    Compiler.set_enabled(True)


def stock(path, *pipeline, workers=1, order=OrderOption.SEQUENTIAL, **pipelines):
    return Loader(
        str(path), batch_size=16, num_workers=workers, order=order, seed=3,
        pipelines={"image": [*pipeline, ToTensor()], "label": [IntDecoder(), ToTensor()], **pipelines},
    )  # fmt: skip


def epoch_of(loader):
    """Copies of everything: FFCV reuses its buffers. [of each output, uint8 or int64 [samples, ...]]"""
    return [
        np.concatenate(parts) for parts in zip(*([t.numpy().copy() for t in batch] for batch in loader), strict=True)
    ]


@pytest.fixture(scope="module")
def compiled(jpg_beton, tmp_path_factory):
    """A stock program with as many workers as may be (its loader, its file), and its first two epochs."""
    path = shutil.copy(jpg_beton, tmp_path_factory.mktemp("stock"))
    pipeline = for_ffcv.RandomResizedCropRGBImageDecoder(SIZE, flip=0.5, seed=SEED), Augment(TEXT, seed=SEED)
    loader = stock(path, *pipeline, workers=min(4, numba.config.NUMBA_NUM_THREADS), order=OrderOption.RANDOM)
    return loader, path, [epoch_of(loader)[0] for _ in range(2)]


def of_jpeg(path):
    """The stored images by Pillow."""
    reader = Reader(str(path))
    data, table = np.fromfile(path, np.uint8), dict(reader.alloc_table[["ptr", "size"]].tolist())
    for place in reader.metadata["f0"]["data_ptr"]:
        file = io.BytesIO(data[place : place + table[place]].tobytes())
        yield np.asarray(Image.open(file).convert("RGB"))


def test_compiled_by_ffcv_it_gives_the_pixels_of_our_own_transform(compiled):
    _, path, epochs = compiled
    images, params = list(of_jpeg(path)), TransformParams(flip=0.5, chain=CHAIN)
    for epoch, shown in enumerate(epochs):
        order = np.random.default_rng(3 + epoch).permutation(SAMPLES)  # FFCV's random order
        for place, index in enumerate(order):
            key = RandomKey(SEED, epoch * SAMPLES + index)
            expected = transform_image(images[index], params, resolution=SIZE, key=key)
            np.testing.assert_array_equal(shown[place], expected, err_msg=f"epoch {epoch}, sample {index}")


def test_the_same_pixels_for_any_number_of_workers_and_after_a_restart(compiled, interpreted):
    loader, path, (first, second) = compiled
    for workers in range(1, loader.num_workers + 1):
        loader.num_workers = workers
        for epoch, expected in ((1, second), (0, first)):
            set_epoch(loader, epoch)
            np.testing.assert_array_equal(epoch_of(loader)[0], expected)
    pipeline = for_ffcv.RandomResizedCropRGBImageDecoder(SIZE, flip=0.5, seed=SEED), Augment(TEXT, seed=SEED)
    again = stock(path, *pipeline, order=OrderOption.RANDOM)
    set_epoch(again, 1)
    np.testing.assert_array_equal(epoch_of(again)[0], second)
    assert (first != second).any(axis=(1, 2, 3)).all()
    set_epoch(again, 0)
    for batch, (one, other) in enumerate(zip(again, again, strict=True)):  # two at a time are epochs of their own
        part = slice(16 * batch, 16 * (batch + 1))
        np.testing.assert_array_equal(one[0], first[part])
        np.testing.assert_array_equal(other[0], second[part])


def test_a_damaged_image_is_told_in_the_loop(compiled):
    """Last of those that use the loader: its file is damaged."""
    loader, path, _ = compiled
    place = int(Reader(str(path)).metadata["f0"]["data_ptr"][37])
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(bytes(100))
    with pytest.raises(UserError, match=rf"{path}: sample 37 could not be decoded \(damaged data\)"):
        epoch_of(loader)
    for thread in threading.enumerate():
        if getattr(thread, "loader", None) is loader:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("decoder, params", [
    (for_ffcv.RandomResizedCropRGBImageDecoder((SIZE, SIZE), (0.5, 0.7), seed=SEED),
     TransformParams(scale_low=0.5, scale_high=0.7)),
    (for_ffcv.SimpleRandomCropRGBImageDecoder(SIZE, flip=0.5, seed=SEED), TransformParams(crop=crops.SRC, flip=0.5)),
    (for_ffcv.CenterCropRGBImageDecoder(SIZE, 0.875), TransformParams(crop=crops.CENTER, ratio=0.875)),
])  # fmt: skip
def test_decoders_are_our_own(raw_beton, tiles, interpreted, decoder, params):
    shown, labels = epoch_of(stock(raw_beton, decoder))
    np.testing.assert_array_equal(labels[:, 0], np.arange(SAMPLES) % 5)
    for index, tile in enumerate(tiles):
        expected = transform_image(tile, params, resolution=SIZE, key=RandomKey(SEED, index))
        np.testing.assert_array_equal(shown[index], expected)


NAMED = {
    "ThreeAugment": for_ffcv.ThreeAugment(seed=SEED),
    "ThreeAugment, two": for_ffcv.ThreeAugment("gray+blur", seed=SEED),
    "ColorJitter": for_ffcv.ColorJitter(0.4, seed=SEED),
    "RandomGrayscale": for_ffcv.RandomGrayscale(0.5, seed=SEED),
    "RandomSolarize": for_ffcv.RandomSolarize(100, seed=SEED),
    "GaussianBlur": for_ffcv.GaussianBlur((0.5, 3.0), seed=SEED),
    "RandAugment": for_ffcv.RandAugment("rand-m7-p0.9", seed=SEED, interpolation="bilinear"),
    "AutoAugment": for_ffcv.AutoAugment("v0", seed=SEED),
    "TrivialAugment": for_ffcv.TrivialAugment(seed=SEED),
}


@pytest.fixture(scope="module")
def views(raw_beton):
    """One epoch of a loader that gives an image as it was decoded and, from the same decoder, what each operation makes
    of it: what one writes must not reach the others."""
    decoder = for_ffcv.CenterCropRGBImageDecoder(SIZE)
    pipelines = {name: PipelineSpec(decoder, transforms=[one, ToTensor()]) for name, one in NAMED.items()}
    pipelines["erased"] = PipelineSpec(
        decoder, transforms=[for_ffcv.RandomErasing(0.5, "const", seed=SEED), ToTensor()]
    )
    Compiler.set_enabled(False)
    try:
        loader = stock(raw_beton, decoder, **pipelines)
        set_epoch(loader, 2)
        return dict(zip(("image", "label", *pipelines), epoch_of(loader), strict=True))
    finally:
        Compiler.set_enabled(True)


@pytest.mark.parametrize("name", NAMED)
def test_operations_are_pillows_timms_and_torchvisions(views, name):
    operation, changed = NAMED[name], 0
    for index, image in enumerate(views["image"]):
        key, loaded = RandomKey(SEED, 2 * SAMPLES + index), load.from_text(operation.text)
        expected = np.asarray(load.reference(loaded, operation.interpolation, Image.fromarray(image), key))
        np.testing.assert_array_equal(views[name][index], expected, err_msg=f"{operation.text}, sample {index}")
        changed += not np.array_equal(expected, image)
    assert changed > SAMPLES / 4


def test_erasing_puts_the_mean_color_where_it_says(views):
    erased = 0
    for index, image in enumerate(views["image"]):
        key, expected = RandomKey(SEED, 2 * SAMPLES + index), image.copy()
        if rng.uniform(key, rng.ERASE) < 0.5:
            top, left, height, width = random_erasing.box(SIZE, SIZE, key)
            expected[top : top + height, left : left + width] = (124, 116, 104)
            erased += height > 0
        np.testing.assert_array_equal(views["erased"][index], expected)
    assert SAMPLES / 4 < erased < 3 * SAMPLES / 4


def test_the_size_may_change_between_epochs(raw_beton, interpreted):
    decoder = for_ffcv.SimpleRandomCropRGBImageDecoder(SIZE)
    loader = stock(raw_beton, decoder, for_ffcv.ThreeAugment())
    assert next(iter(loader))[0].shape == (16, SIZE, SIZE, 3)
    decoder.output_size = 24
    assert next(iter(loader))[0].shape == (16, 24, 24, 3)


def test_no_operation_comes_after_to_tensor(raw_beton, interpreted):
    with pytest.raises(UserError, match=r"gray.*put it before ToTensor"):
        stock(raw_beton, for_ffcv.CenterCropRGBImageDecoder(8), ToTensor(), for_ffcv.RandomGrayscale())


@pytest.mark.parametrize("make, said", [
    (lambda: for_ffcv.CenterCropRGBImageDecoder((32, 48)), "images are square"),
    (lambda: for_ffcv.CenterCropRGBImageDecoder(0), "1 or more"),
    (lambda: for_ffcv.CenterCropRGBImageDecoder(32, 1.5), "ratio"),
    (lambda: for_ffcv.RandomResizedCropRGBImageDecoder(32, (0.5, 0.2)), "low <= high"),
    (lambda: for_ffcv.SimpleRandomCropRGBImageDecoder(32, flip=2), "probability"),
    (lambda: for_ffcv.SimpleRandomCropRGBImageDecoder(32, interpolation="cubic"), "bicubic"),
    (lambda: for_ffcv.ColorJitter(3), "jitter: strength is '3'; it must be a number 0 to 1"),
    (lambda: for_ffcv.AutoAugment("v1"), "nearest is 'auto-v0'"),
    (lambda: Augment("thre"), "nearest is 'three'"),
    (lambda: set_epoch(None, -1), "from 0"),
])  # fmt: skip
def test_bad_input_is_one_line(make, said):
    with pytest.raises(UserError, match=said) as told:
        make()
    assert "\n" not in str(told.value)
