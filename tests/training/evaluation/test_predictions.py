"""What is kept of each validation image: against a plain loop, on any number of ranks, each image once."""

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from config.recipe import BASE_RECIPE, load_recipe
from ffcv_ops import order
from training import distributed
from training.evaluation import predictions
from training.evaluation.loop import evaluate
from training.run import Run

STAGE = load_recipe(Path(BASE_RECIPE.parent / "smoke.yaml")).stages[0]  # 32 px
N, CLASSES = 61, 5


class Reddest(nn.Module):
    """Logits are the red values of the first pixels."""

    def forward(self, images):
        return 3 * images[:, 0, 0, :CLASSES]


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(np.random.default_rng(1).integers(0, CLASSES, N))


def run(rank=0, world=1, names=("a", "b", "c", "d", "e")):
    beton = SimpleNamespace(path="x.beton", samples=N, class_names=names)
    data = SimpleNamespace(train=beton, val=beton, classes=CLASSES)
    recipe = load_recipe(BASE_RECIPE.parent / "smoke.yaml")
    return Run(recipe, distributed.Ranks(rank, world, torch.device("cpu")), {"main": data}, torch.float32)


def batches(images, labels, rank=0, world=1, size=8):
    """Through one buffer, as FFCV's loader hands them out."""
    share = order.evaluation_share(N, rank=rank, world=world)
    buffer = torch.empty(size, 32, 32, 3, dtype=torch.uint8)
    for k in range(0, len(share), size):
        part = share[k : k + size]
        buffer[: len(part)] = images[part]
        yield buffer[: len(part)], labels[part]


def collect(run, stage, network, batches):
    reducer = predictions.CollectPredictions(run, stage)
    [[collected]] = evaluate([network], [[reducer]], batches, autocast=nullcontext, flip=stage.eval_flip)
    return collected


def expected(images, labels):
    logits = 3 * (images[:, 0, :CLASSES, 0].double().numpy() / 255 - 0.485) / 0.229
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    wrong = np.flatnonzero(shares.argmax(1) != labels.numpy())
    return shares.argmax(1), shares.max(1), wrong[np.argsort(-shares.max(1)[wrong], kind="stable")]


def check(made, images, labels):
    predicted, confidence, wrong = expected(images, labels)
    assert np.array_equal(made.labels, labels)
    assert np.array_equal(made.predicted, predicted)
    assert made.confidence == pytest.approx(confidence, rel=1e-5)
    assert len(wrong) > predictions.SHOWN
    assert made.confidence[made.shown] == pytest.approx(confidence[wrong[: predictions.SHOWN]], rel=1e-5)
    assert set(made.shown) <= set(wrong)
    assert np.array_equal(made.pictures, images[made.shown])
    assert list(made.classes) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("size", [1, 8, 64])
def test_one_rank(images, labels, size):
    network = Reddest().train()
    check(collect(run(), STAGE, network, batches(images, labels, size=size)), images, labels)
    assert network.training


@pytest.mark.parametrize("world", [2, 3, 7, 70])
def test_several_ranks_see_each_image_once(images, labels, world, monkeypatch):
    """Ranks are threads here; 70 of them leave some without an image."""
    meet, shelf = threading.Barrier(world), [None] * world
    rank_of = threading.local()

    def summed(values):
        shelf[rank_of.number] = values.clone()
        meet.wait(60)
        total = sum(shelf)
        meet.wait(60)
        return total

    monkeypatch.setattr(predictions.distributed, "all_reduce_sum", summed)
    made = [None] * world

    def work(rank):
        rank_of.number = rank
        with torch.inference_mode():
            made[rank] = collect(run(rank, world), STAGE, Reddest(), batches(images, labels, rank, world))

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    check(made[0], images, labels)
    check(made[-1], images, labels)


def test_what_is_saved_is_read_again(images, labels, tmp_path):
    made = collect(run(names=None), STAGE, Reddest(), batches(images, labels))
    assert made.classes[-1] == "class 4"
    large = made._replace(pictures=np.repeat(np.repeat(made.pictures, 10, 1), 10, 2))
    predictions.save(tmp_path / "x.npz", large)
    again = predictions.load(tmp_path / "x.npz")
    for name in ("labels", "predicted", "confidence", "classes", "shown"):
        assert np.array_equal(getattr(again, name), getattr(made, name))
    side = (predictions.SIDE, predictions.SIDE)
    reference = np.asarray(Image.fromarray(large.pictures[3]).resize(side, Image.Resampling.LANCZOS))
    assert np.array_equal(again.pictures[3], reference)
    assert predictions.load(tmp_path / "nothing.npz") is None


def test_without_mistakes_nothing_is_shown(images, tmp_path):
    right = torch.from_numpy(expected(images, torch.zeros(N))[0])
    made = collect(run(), STAGE, Reddest(), batches(images, right))
    assert made.shown.size == 0
    predictions.save(tmp_path / "x.npz", made)
    assert len(predictions.load(tmp_path / "x.npz").pictures) == 0
