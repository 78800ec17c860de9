"""The loader of anybody's loop: its keywords, epochs, state and end; every field, held against stock FFCV's writer."""

import gc
import inspect
import itertools
import json
import math
import multiprocessing
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch
from ffcv import fields as ffcv_fields
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter
from PIL import ExifTags, Image
from torchvision.transforms import functional as vision

import ffcv_ops
from ffcv_ops import Mixing, UserError, eval_loader, mixup_cutmix, train_loader, write_beton
from ffcv_ops.loader import TrainOptions
from ffcv_ops.storage.index import describe
from tools import api_reference

SAMPLES = 96
SMALL = {"resolution": 24, "batch_size": 16, "workers": 1}


def training(path, **more):
    return train_loader(path, **SMALL | {"augment": "three", "color_jitter": 0.3, "seed": 5} | more)


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.fixture(scope="module")
def epochs(jpg_beton):
    """Three epochs of six batches."""
    loader = training(jpg_beton)
    return [list(loader.epoch(number)) for number in range(3)]


# --- keywords ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({"resolutoin": 24}, "train_loader: resolutoin is not a key; the nearest is 'resolution'"),
        ({"resolution": "wide"}, "resolution is 'wide'; it must be a whole number at least 8"),
        ({"flip": 2}, "flip is 2; it must be a number at least 0 and at most 1"),
        ({"augment": "tree"}, "'tree' is not an augmentation; the nearest is 'three'"),
        ({"device": "gpu"}, "device is 'gpu'; it must be cpu, cuda or cuda:N"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of world_size 2"),
        ({"fields": ("image", "labels")}, "has no field 'labels'; the nearest is 'label'"),
        ({"fields": ("label",)}, "`fields` must hold 'image'"),
        ({"batch_size": 200}, "96 images do not fill one batch of 200"),
        ({"mix_chunk": 7}, "mix_chunk 7 does not divide the global batch of 16"),
    ],
)
def test_wrong_keywords_are_refused_in_a_line(jpg_beton, given, message):
    with pytest.raises(UserError) as refused:
        training(jpg_beton, **given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_fault_has_a_line(jpg_beton):
    with pytest.raises(UserError) as refused:
        training(jpg_beton, flip=2, crop="round")
    assert str(refused.value).count("\n") == 1


def test_type_checkers_know_the_keywords():
    parameter = inspect.signature(train_loader).parameters["given"]
    assert parameter.annotation.__args__ == (TrainOptions,)
    assert TrainOptions.__annotations__.keys() >= {"resolution", "crop", "seed"}


def test_the_place_among_processes(jpg_beton, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torch\.distributed is not initialized; make the loader after"):
        training(jpg_beton)
    with pytest.raises(UserError, match=r"torch\.distributed is not initialized"):
        training(jpg_beton, rank=1)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert training(jpg_beton).said.world_size == 1
    finally:
        torch.distributed.destroy_process_group()
    whole = training(jpg_beton, rank=0, world_size=1)
    parts = [training(jpg_beton, batch_size=8, rank=rank, world_size=2) for rank in range(2)]
    for (images, _), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(images, torch.cat([images for images, _ in shares]))


def test_the_page_has_todays_reference():
    assert api_reference.PAGE.read_text().endswith(api_reference.reference()), "run python -m tools.api_reference"


def test_all_that_is_promised_is_there():
    assert {name for name in ffcv_ops.__all__ if getattr(ffcv_ops, name).__doc__} == set(ffcv_ops.__all__)
    with pytest.raises(AttributeError, match="no attribute 'train_lodaer'"):
        ffcv_ops.train_lodaer  # noqa: B018


# --- epochs and state ----------------------------------------------------------------------------------------------


def test_each_loop_is_the_next_epoch_and_batches_may_be_kept(jpg_beton, epochs):
    loader = training(jpg_beton)
    assert len(loader) == 6
    for expected in epochs[:2]:
        seen = list(loader)
        assert [same(*pair) for pair in zip(seen, expected, strict=True)] == [True] * 6
    loader.set_epoch(0)
    assert same(next(iter(loader)), epochs[0][0])


def test_without_the_copy_memory_is_used_again(jpg_beton, epochs):
    seen = list(training(jpg_beton, reuse_memory=True))
    assert not all(same(*pair) for pair in zip(seen, epochs[0], strict=True))
    assert all(same(*pair) for pair in zip(training(jpg_beton, reuse_memory=True), epochs[0], strict=True))


@pytest.mark.parametrize("taken", [0, 1, 5, 6, 8])
def test_a_state_goes_on_with_the_next_batch(jpg_beton, epochs, taken):
    first, second = training(jpg_beton), training(jpg_beton, batch_size=8, rank=1, world_size=2)
    for _ in itertools.islice(itertools.chain(first, first), taken):
        pass
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    whole = [batch for epoch in epochs for batch in epoch][taken:]
    left = 6 - taken % 6
    seen = list(second)
    assert len(seen) == left
    assert all(torch.equal(images, of_all[8:]) for (images, _), (of_all, _) in zip(seen, whole[:left], strict=True))
    assert torch.equal(next(iter(second)).image, whole[left].image[8:])


def test_set_epoch_keeps_the_place_that_was_loaded(jpg_beton, epochs):
    loader = training(jpg_beton)
    state = {"epoch": 1, "batch": 4, "settings": loader.settings}
    for epoch, batch in ((1, 4), (2, 0), (0, 0)):
        loader.load_state_dict(state)
        loader.set_epoch(epoch)
        assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (epoch, batch)
        assert same(next(iter(loader)), epochs[epoch][batch])


@pytest.mark.parametrize("state, message", [({"seed": 4}, "not the state"), (None, "seed 4, not 5")])
def test_a_foreign_state_is_refused(jpg_beton, state, message):
    with pytest.raises(UserError, match=message):
        training(jpg_beton).load_state_dict(state or training(jpg_beton, seed=4).state_dict())


def test_evaluation_has_a_state_too(jpg_beton):
    loader = eval_loader(jpg_beton, **SMALL)
    whole = list(loader)
    for place, _ in enumerate(loader):
        if place == 3:
            break
    other = eval_loader(jpg_beton, **SMALL)
    other.load_state_dict(loader.state_dict())
    assert [same(*pair) for pair in zip(other, whole[4:], strict=True)] == [True] * 2


# --- the end -------------------------------------------------------------------------------------------------------


def decoding():
    return {
        thread for thread in threading.enumerate() if thread.name.startswith("decode") or "_Iterator" in repr(thread)
    }


def raised(loader):
    for _ in loader:
        raise ValueError


@pytest.mark.parametrize("way", ["with", "close", "collected", "left", "raised"])
def test_no_thread_stays(jpg_beton, way):
    gc.collect()
    before = decoding()
    loader = training(jpg_beton)
    next(iter(loader))
    if way == "with":
        with loader:
            next(iter(loader))
    elif way == "close":
        loader.close()
    elif way == "left":
        for _ in loader:
            break
    elif way == "raised":
        with pytest.raises(ValueError):
            raised(loader)
    if way in ("with", "close"):
        with pytest.raises(UserError, match="this loader is closed; make another"):
            next(iter(loader))
    del loader
    gc.collect()
    for thread in decoding() - before:  # Python's pool tells its threads to end and does not wait for them
        thread.join(20)
    assert not decoding() - before


def test_two_loops_at_a_time_are_refused(jpg_beton):
    loader = training(jpg_beton)
    with pytest.raises(UserError, match="another epoch of this loader was begun; make a loader for each"):
        for _ in zip(loader, loader, strict=True):
            pass


def test_it_is_pickled_and_refused_after_a_fork(jpg_beton, epochs):
    loader = training(jpg_beton)
    next(iter(loader))
    again = pickle.loads(pickle.dumps(loader))
    assert same(next(iter(again)), epochs[0][1])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            next(iter(loader))
        except UserError as error:
            os.write(writer, str(error).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert b"cannot be used after a fork; make it in this process" in os.read(reader, 1000)
    assert multiprocessing.active_children() == []


# --- what batches hold ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["float32", "float16", "bfloat16"])
def test_normalized_images(jpg_beton, output):
    images = next(iter(eval_loader(jpg_beton, **SMALL))).image
    given = next(iter(eval_loader(jpg_beton, **SMALL, output=output))).image
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = vision.normalize(images.permute(0, 3, 1, 2).double() / 255, mean, std)
    assert given.dtype == getattr(torch, output)
    assert given.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(given.double(), expected, rtol=2**-7, atol=2e-3 if output == "float32" else 0.02)
    if output == "float32":
        torch.testing.assert_close(given.double(), expected, rtol=1e-6, atol=1e-6)


def test_mixing_takes_what_the_loader_gives(jpg_beton):
    """uint8 and normalized batches are mixed to the same; floats (n, classes) are targets already."""
    stored = next(iter(eval_loader(jpg_beton, **SMALL)))
    floats = next(iter(eval_loader(jpg_beton, **SMALL, output="float32")))
    images, targets = mixup_cutmix(*stored, classes=5, seed=1, step=2, smoothing=0.1)
    again, _ = mixup_cutmix(*floats, classes=5, seed=1, step=2)
    assert torch.equal(images, again)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    hot = torch.nn.functional.one_hot(stored.label, 5).float()
    assert torch.equal(
        mixup_cutmix(floats.image, hot, classes=5, seed=1, step=2)[1],
        mixup_cutmix(floats.image, stored.label, classes=5, seed=1, step=2)[1],
    )
    kept, _ = mixup_cutmix(*floats, classes=5, seed=1, step=2, how=Mixing(0, 0))
    assert torch.equal(kept, floats.image)
    with pytest.raises(UserError, match="an even number of images is mixed, not 15"):
        mixup_cutmix(stored.image[:15], stored.label[:15], classes=5, seed=1, step=2)


FIELDS = {
    "image": ffcv_fields.RGBImageField(write_mode="raw"),
    "label": ffcv_fields.IntField(),
    "age": ffcv_fields.FloatField(),
    "tags": ffcv_fields.NDArrayField(np.dtype("f4"), (5,)),
    "box": ffcv_fields.TorchTensorField(torch.int16, (2, 2)),
    "said": ffcv_fields.JSONField(),
    "code": ffcv_fields.BytesField(),
    "second": ffcv_fields.RGBImageField(write_mode="jpg"),
}


class Samples:
    """One value for each of FIELDS, by its number."""

    classes = ("even", "odd")

    def __init__(self, tiles, **other):
        self.tiles, self.other = tiles, other

    def __len__(self):
        return len(self.tiles)

    def __getitem__(self, number):
        number = int(number)  # stock FFCV's writer asks with NumPy's, which JSON does not take
        tile = self.tiles[number]
        tags = (np.arange(5) == number % 5).astype("f4")
        box = torch.full((2, 2), -number, dtype=torch.int16)
        values = (
            tile,
            number % 2,
            number / 3,
            tags,
            box,
            {"n": number, "ü": "x" * number},
            bytes([number]) * number,
            tile,
        )
        return tuple((dict(zip(FIELDS, values, strict=True)) | self.other).values())


class Arrays(Samples):
    """What stock FFCV's writer takes for bytes."""

    def __getitem__(self, number):
        *values, code, second = super().__getitem__(number)
        return (*values, np.frombuffer(code or b"-", np.uint8), second)


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiles):
    """Files of the same samples, by us and by stock FFCV."""
    folder = tmp_path_factory.mktemp("fields")
    write_beton(folder / "ours.beton", Samples(tiles), fields=FIELDS, page_size=2**21)
    DatasetWriter(str(folder / "stock.beton"), FIELDS, num_workers=1, page_size=2**21).from_indexed_dataset(
        Arrays(tiles)
    )
    return folder


@pytest.mark.parametrize("cache", ["os", "process"])
@pytest.mark.parametrize("name", ["ours", "stock"])
def test_every_field_comes_along(written, tiles, name, cache):
    samples, seen = Samples(tiles), 0
    for batch in training(written / f"{name}.beton", cache=cache, augment="none", color_jitter=None):
        assert batch._fields == tuple(FIELDS)
        assert (batch.tags.dtype, batch.box.dtype, batch.age.dtype) == (torch.float32, torch.int16, torch.float64)
        assert batch.second.shape == batch.image.shape == (16, 24, 24, 3)
        apart = (batch.second.double() - batch.image.double()).abs().mean()
        assert 0 < apart < 8  # the same crops and flips; one of them is a JPEG
        for place, said in enumerate(batch.said):
            _, label, age, tags, box, expected, code, _ = samples[said["n"]]
            assert said == expected
            assert (batch.label[place], batch.age[place]) == (label, age)
            assert batch.code[place] == (code or (b"" if name == "ours" else b"-"))
            np.testing.assert_array_equal(batch.tags[place], tags)
            assert torch.equal(batch.box[place], box)
            seen += 1
    assert seen == SAMPLES


def test_our_file_is_one_of_ffcvs(written, tiles):
    """FFCV's reader finds the fields, and their values where it looks for them."""
    reader, samples = Reader(str(written / "ours.beton")), Samples(tiles)
    assert {name: type(field) for name, field in reader.handlers.items()} == {
        name: {"said": ffcv_fields.BytesField, "box": ffcv_fields.NDArrayField}.get(name, type(field))
        for name, field in FIELDS.items()
    }
    assert (reader.handlers["box"].shape, reader.handlers["box"].dtype) == ((2, 2), np.int16)
    stored = (written / "ours.beton").read_bytes()
    for number, (image, label, age, tags, box, said, code, _) in enumerate(reader.metadata):
        tile, *expected, expected_code, _ = samples[number]
        assert stored[image["data_ptr"] :][: tile.nbytes] == tile.tobytes()
        assert (label, age) == tuple(expected[:2])
        assert np.frombuffer(stored, "f4", 5, tags).tolist() == expected[2].tolist()
        assert np.frombuffer(stored, "i2", 4, box).tolist() == expected[3].flatten().tolist()
        assert json.loads(stored[said["ptr"] :][: said["size"] - 1]) == expected[4]
        assert stored[code["ptr"] :][: code["size"]] == expected_code
    assert describe(written / "ours.beton").class_names == ("even", "odd")


def test_fields_may_be_left_out_and_batches_be_dicts(written):
    batch = next(iter(training(written / "ours.beton", fields=("image", "tags"), container="dict")))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {"image": (16, 24, 24, 3), "tags": (16, 5)}


@pytest.mark.parametrize("field", ["tags", "said", "second"])
def test_damage_in_any_field_is_found(written, tmp_path, field):
    for file in written.glob("ours.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = describe(tmp_path / "ours.beton") and training(tmp_path / "ours.beton").reader
    record = index.metadata[7][index.field_names.index(field)]
    place = int(record) if field == "tags" else int(record["ptr" if field == "said" else "data_ptr"])
    with open(tmp_path / "ours.beton", "r+b") as file:
        file.seek(place + 2)
        byte = file.read(1)[0]
        file.seek(place + 2)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(UserError, match=r"sample 7 .*its checksum differs"):
        list(eval_loader(tmp_path / "ours.beton", **SMALL))
    replaced = training(tmp_path / "ours.beton", bad_limit=0.5)
    list(replaced)
    assert replaced.corrupt_samples.replaced > 0


def test_the_fields_are_told_from_the_first_sample(tmp_path, tiles):
    class Pictures(Samples):
        def __getitem__(self, number):
            return Image.fromarray(self.tiles[number]).convert("P"), np.int64(number), 0.5, b"x", ["a"], torch.ones(2)

    write_beton(tmp_path / "x.beton", Pictures(tiles))
    batch = next(iter(eval_loader(tmp_path / "x.beton", **SMALL)))
    assert batch._fields == ("image", "label", "field_2", "field_3", "field_4", "field_5")
    assert batch.label.tolist() == list(range(16))
    assert (batch.field_3[0], batch.field_4[0], batch.field_5.shape) == (b"x", ["a"], (16, 2))


def test_pictures_are_stored_upright_and_over_white(tmp_path, tiles):
    path, (height, width) = tmp_path / "x.beton", tiles[1].shape[:2]
    turned, clear = Image.fromarray(tiles[0][:20]), Image.fromarray(tiles[1])
    turned.getexif()[ExifTags.Base.Orientation] = 6  # is shown turned a quarter to the right
    seen = np.arange(width) % 2 == 1
    clear.putalpha(Image.fromarray(np.tile(np.uint8(255 * seen), (height, 1))))
    raw = {"image": ffcv_fields.RGBImageField(write_mode="raw"), "label": ffcv_fields.IntField()}
    write_beton(path, [(turned, 0), (clear, 1)], fields=raw, page_size=2**21)
    data, stored = path.read_bytes(), []
    for image in Reader(str(path)).metadata["f0"]:
        shape = int(image["height"]), int(image["width"]), 3
        stored.append(np.frombuffer(data, np.uint8, math.prod(shape), int(image["data_ptr"])).reshape(shape))
    np.testing.assert_array_equal(stored[0], np.rot90(tiles[0][:20], -1))
    np.testing.assert_array_equal(stored[1], np.where(seen[:, None], tiles[1], 255))


def test_the_bytes_depend_on_nothing_else(written, tmp_path, tiles):
    write_beton(tmp_path / "ours.beton", Samples(tiles), fields=FIELDS, page_size=2**21, workers=3)
    assert (tmp_path / "ours.beton").read_bytes() == (written / "ours.beton").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ours.beton", "ours.json", "ours.xxh64"]


@pytest.mark.parametrize(
    "other, message",
    [
        ({"label": -1}, "sample 0: label is -1, but classes count from 0"),
        ({"label": "three"}, "sample 0, field label: IntField takes no str"),
        ({"tags": np.zeros(4, "f4")}, r"field tags: NDArrayField takes no ndarray \(shape \(4,\), not \(5,\)\)"),
        ({"tags": np.zeros(5, "c8")}, "field tags: NDArrayField takes no ndarray"),
        ({"image": np.zeros((4, 4), "u1")}, "field image: RGBImageField takes no ndarray"),
        ({"more": 1}, "9 values for the fields image, label"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_lost(tmp_path, tiles, other, message):
    (tmp_path / "x.beton").write_bytes(b"before")
    with pytest.raises(UserError, match=message):
        write_beton(tmp_path / "x.beton", Samples(tiles[:4], **other), fields=FIELDS)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.beton", b"before")]


def test_impossible_files_are_refused(tmp_path, tiles):
    for samples, more in (([], {}), (Samples(tiles), {"page_size": 1000})):
        with pytest.raises(UserError, match="of at least one sample is written, with pages of"):
            write_beton(tmp_path / "x.beton", samples, **more)
    with pytest.raises(UserError, match="up to 16 ASCII characters, not 'größe'"):
        write_beton(tmp_path / "x.beton", Samples(tiles), fields={"größe": ffcv_fields.IntField()})
    with pytest.raises(UserError, match="there is no field for a object"):
        write_beton(tmp_path / "x.beton", [(object(), 1)])
    with pytest.raises(UserError, match=r"x\.beton cannot be written"):
        write_beton(tmp_path / "none" / "x.beton", Samples(tiles))
