"""Batches as a GPU sees them that is many steps behind the host: equal to those of a loader for the CPU."""

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from ffcv.fields import IntField, RGBImageField

from ffcv_ops import train_loader, write_beton
from tests import emulated_streams
from tests.emulated_streams import CUDA, Device
from tests.ffcv_ops import loading
from tests.ffcv_ops.loading import SAMPLES, collected
from training import loading as loader

BATCH = 4
STAGE = replace(
    loading.STAGE, resolution=24, batch=BATCH, mix_chunk=BATCH, augment="none", jitter=None, repeats=1, mixup=0.0,
    cutmix=0.0,
)  # fmt: skip


train = partial(loading.train, stage=STAGE, workers=1)


def evaluation(path, **placement):
    return loader.eval_loader(path, SAMPLES, STAGE, batch=BATCH, placement=loader.Placement(workers=1, **placement))


def differing(seen, expected):
    assert len(seen) == len(expected) > 0
    return [number for number, (one, other) in enumerate(zip(seen, expected, strict=True))
            if not all(map(torch.equal, one, other))]  # fmt: skip


@pytest.fixture(scope="module")
def expected(jpg_beton):
    """What loaders for the CPU give."""
    batches = train(jpg_beton)
    return {
        "training": collected(batches.epoch(0)),
        "next": collected(batches.epoch(1)),
        "larger": collected(batches.epoch(1, resolution=32)),
        "evaluation": collected(evaluation(jpg_beton).epoch(0)),
    }


@pytest.fixture
def emulated(expected, monkeypatch):
    """Emulated streams, from here on."""
    emulated_streams.install(monkeypatch)


@pytest.fixture(params=[0, 1, 2, 4, 5, 6, 8, 12, 20])
def device(request, emulated):
    """One that takes its time: the loader alone would be five batches ahead before it has done one."""
    return Device(request.param, seconds=0.01)


def run(device, batches):
    for batch in batches:
        device.step(*batch)


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_an_epoch(jpg_beton, expected, device, kind):
    batches = {"training": train, "evaluation": evaluation}[kind](jpg_beton, device=CUDA)
    run(device, batches.epoch(0))
    assert not differing(device.finish(), expected[kind])


def test_epoch_after_epoch_at_other_resolutions(jpg_beton, expected, device):
    batches = train(jpg_beton, device=CUDA)
    for epoch, resolution in ((0, 24), (1, 24), (1, 32)):
        run(device, batches.epoch(epoch, resolution=resolution))
    assert not differing(device.finish(), expected["training"] + expected["next"] + expected["larger"])


def test_leaving_an_epoch_early(jpg_beton, expected, device):
    batches, wanted = train(jpg_beton, device=CUDA), []
    for left_after in (1, 7, 11):
        for number, batch in enumerate(batches.epoch(0)):
            device.step(*batch)
            if number + 1 == left_after:
                break
        wanted += expected["training"][:left_after]
    run(device, batches.epoch(1))
    assert not differing(device.finish(), wanted + expected["next"])


def addresses(batches):
    """Where the pinned memory lies that no epoch uses, of images and of labels."""
    return sorted(array.ctypes.data for array in batches.graph.spare.values())


def test_pinned_memory_is_kept_between_epochs_and_freed_with_the_loader(jpg_beton, expected, emulated):
    batches, device, found = train(jpg_beton, device=CUDA), Device(lag=6), []
    for epoch, most in ((0, 99), (0, 3), (0, 99)):  # the second is left early
        for number, batch in enumerate(batches.epoch(epoch)):
            device.step(*batch)
            if number + 1 == most:
                break
        found.append(addresses(batches))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 2
    assert not differing(device.finish(), expected["training"] + expected["training"][:3] + expected["training"])
    open_epoch = batches.epoch(0)
    next(open_epoch)
    assert addresses(batches) == []  # in use: another epoch at the same time gets memory of its own
    open_epoch.close()
    assert addresses(batches) == found[0]
    run(device, batches.epoch(1, resolution=32))
    assert addresses(batches) != found[0]
    memory = [weakref.ref(array) for array in batches.graph.spare.values()]
    del batches, open_epoch, batch
    gc.collect()
    assert all(ref() is None for ref in memory)


def test_two_images_of_one_shape_keep_memory_of_their_own(tmp_path, tiles, emulated):
    path, image = tmp_path / "x.beton", RGBImageField("raw")
    samples = [(tile, number % 5, tile[::-1]) for number, tile in enumerate(tiles)]
    write_beton(path, samples, fields={"image": image, "label": IntField(), "second": image})
    given = {"resolution": 24, "batch_size": BATCH, "workers": 1, "seed": 3}
    on_cpu = train_loader(path, **given)
    wanted = [tuple(batch) for _ in range(2) for batch in on_cpu]
    on_gpu, device = train_loader(path, device="cuda", reuse_memory=True, **given), Device(lag=2)
    for _ in range(2):
        run(device, on_gpu)
    assert not differing(device.finish(), wanted)


def test_two_loaders_at_a_time(jpg_beton, expected, device):
    both = train(jpg_beton, device=CUDA).epoch(0), evaluation(jpg_beton, device=CUDA).epoch(0)
    for one, other in zip(*both, strict=True):
        device.step(*one)
        device.step(*other)
    seen = device.finish()
    assert not differing(seen[0::2], expected["training"])
    assert not differing(seen[1::2], expected["evaluation"])


def test_the_emulation_sees_what_stock_ffcv_does(jpg_beton, expected, emulated, monkeypatch):
    """Without the wait in FFCV's thread the host's memory is written again before it is copied."""
    batches, device = train(jpg_beton, device=CUDA), Device(lag=None)
    monkeypatch.setattr(emulated_streams.Stream, "synchronize", lambda stream: None)
    with emulated_streams.device_is_busy():
        run(device, batches.epoch(0))
    monkeypatch.undo()
    seen = device.finish()
    wrong = differing(seen, expected["training"])
    slots = batches.batches_ahead + 2
    assert wrong == list(range(len(seen) - slots))  # all but the last of each slot
    assert any(not torch.equal(seen[k][1], expected["training"][k][1]) for k in wrong), "labels too"


@pytest.mark.gpu
@pytest.mark.parametrize("resolution", [24, 32])
def test_a_real_device_that_is_behind(jpg_beton, expected, resolution):
    """Each step spins for about 20 ms; 24 of them fit into the queue of launches."""
    device, seen = torch.device("cuda"), []
    batches = train(jpg_beton, device=device)
    for images, labels in batches.epoch(1, resolution=resolution):
        torch.cuda._sleep(30_000_000)
        seen.append((images.clone(), labels.clone()))
    seen = [(images.cpu(), labels.cpu()) for images, labels in seen]
    assert not differing(seen, expected["next" if resolution == 24 else "larger"])
