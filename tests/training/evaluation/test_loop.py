"""Evaluation counts: against NumPy on the same logits, whatever the batches."""

import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from config.recipe import BASE_RECIPE, load_recipe
from training.evaluation.accuracy import CountAccuracy, LabelSpec
from training.evaluation.loop import evaluate
from training.evaluation.predictions import CollectPredictions

CPU = torch.device("cpu")


class Lookup(nn.Module):
    """Logits are a table's rows; the image's first pixel says which (after undoing the normalisation)."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, images):
        rows = (images[:, 0, 0, 0] * 0.229 + 0.485) * 255
        return self.table[rows.round().long()]


@pytest.mark.parametrize("classes", [3, 7])
@pytest.mark.parametrize("batch", [1, 8, 50])
def test_counts_equal_numpys(classes, batch):
    generator = np.random.default_rng(0)
    table = generator.normal(size=(50, classes)).astype(np.float32)
    labels = generator.integers(0, classes, 50)
    images = np.zeros((50, 4, 4, 3), np.uint8)
    images[:, :, :, 0] = np.arange(50)[:, None, None]
    pieces = [
        (torch.from_numpy(images[k : k + batch]), torch.from_numpy(labels[k : k + batch])) for k in range(0, 50, batch)
    ]
    other = table[::-1].copy()
    networks = [Lookup(torch.from_numpy(table)).train(), Lookup(torch.from_numpy(other)).eval()]
    read = iter(pieces)  # once
    counters = [[CountAccuracy(classes, CPU)] for _ in networks]
    results = [result for [result] in evaluate(networks, counters, read, autocast=nullcontext)]
    for its, result in zip((table, other), results, strict=True):
        ranking = np.argsort(-its, axis=1)
        assert result.top1 == (ranking[:, 0] == labels).mean()
        assert result.top5 == (ranking[:, :5] == labels[:, None]).any(1).mean()
        exact = its.astype(np.float64)
        loss = (np.log(np.exp(exact).sum(1)) - exact[np.arange(50), labels]).mean()
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.images == 50
        said = ranking[:, 0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, about classes that are said and never true
            assert result.balanced == pytest.approx(balanced_accuracy_score(labels, said))
        assert result.majority == np.bincount(labels).max() / len(labels)
        never = [k for k in np.unique(labels) if not (said[labels == k] == k).any()]
        assert f"{len(never)} of {len(np.unique(labels))} classes have 0 %" in result.judgement([]) or not never
        assert np.array_equal(result.by_class[:, 2], np.bincount(labels, minlength=classes))
        assert np.array_equal(result.by_class[:, 0], np.bincount(labels[ranking[:, 0] == labels], minlength=classes))
    assert results[0].loss != results[1].loss
    assert [network.training for network in networks] == [True, False]


class FirstRow(nn.Module):
    """Logits are the red values along the first row, times 1 to 8: not the same for a mirror image."""

    def forward(self, images):
        return images[:, 0, 0, :] * torch.arange(1, 9)


def test_mirror_images_count_half():
    """Against the same logits in NumPy; without `flip` the result is another one."""
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    labels = generator.integers(0, 8, 60)
    batches = [(torch.from_numpy(images), torch.from_numpy(labels))]
    red = (images[:, 0, :, 0].astype(np.float64) / 255 - 0.485) / 0.229
    one, other = red * np.arange(1, 9), red[:, ::-1] * np.arange(1, 9)
    results = {}
    for flip, logits in ((False, one), (True, (one + other) / 2)):
        [[result]] = evaluate([FirstRow()], [[CountAccuracy(8, CPU)]], batches, autocast=nullcontext, flip=flip)
        ranking = np.argsort(-logits, axis=1)
        assert result.top1 == (ranking[:, 0] == labels).mean()
        assert result.top5 == (ranking[:, :5] == labels[:, None]).any(1).mean()
        loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(60), labels]).mean()
        assert result.loss == pytest.approx(loss, rel=1e-5)
        results[flip] = result
    assert results[True] != results[False]
    mirrored = [(batches[0][0].flip(2), batches[0][1])]
    [[again]] = evaluate([FirstRow()], [[CountAccuracy(8, CPU)]], mirrored, autocast=nullcontext, flip=True)
    assert again == results[True], "an image and its mirror image count the same"


class Reads(TorchDispatchMode):
    """Counts operations that read from the device or copy from the host: each would make the host wait for a GPU. The
    names are those that arrive in inference mode; `resolve_conj` comes before a list or an array is made."""

    words = ("item", "is_nonzero", "equal", "nonzero", "_unique2", "to.dtype_layout", "resolve_conj", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.name().removeprefix("aten::")
        places = [place for place in arguments[1] if place is not None] if name == "index.Tensor" else []
        by_mask = any(place.dtype == torch.bool for place in places)
        if name in self.words or by_mask:
            self.found.append(name)
        return function(*arguments, **(named or {}))


def test_the_host_reads_nothing_until_the_last_batch():
    """All reducers at once: by labels, among some of the outputs, by other answers, and the predictions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 8, 8, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(4, (60,), generator=generator)
    data = SimpleNamespace(path="x.beton", samples=60, class_names=None)
    ranks = SimpleNamespace(rank=0, world=1, device=CPU)
    run = SimpleNamespace(ranks=ranks, datasets={"main": SimpleNamespace(train=data, val=data, classes=8)})
    config = load_recipe(BASE_RECIPE.parent / "smoke.yaml", {"stage.resolution": "8"}).stages[0]
    counters = [
        CountAccuracy(4, CPU),
        CountAccuracy(4, CPU, LabelSpec(class_map=torch.tensor([7, 0, 3, 4]))),
        CountAccuracy(4, CPU, LabelSpec(answers=torch.stack([labels, torch.full_like(labels, -1)], 1))),
        CollectPredictions(run, config),
    ]
    reads = Reads()

    def batches():
        with reads:
            ones = torch.ones(3)
            for read in (lambda: ones.sum().item(), ones.tolist, ones.cpu, lambda: ones[ones > 0],
                         lambda: labels.new_tensor(60)):  # fmt: skip
                read()
            assert reads.found == ["item", "resolve_conj", "to.dtype_layout", "index.Tensor", "lift_fresh"], "itself"
            reads.found.clear()
            for start in range(0, 60, 20):
                yield images[start : start + 20], labels[start : start + 20]

    [[own, among, other, predictions]] = evaluate([FirstRow()], [counters], batches(), autocast=nullcontext)
    assert reads.found == []
    assert own.images == among.images == other.images == len(predictions.labels) == 60
    assert (own.top1, own.top5) == (other.top1, other.top5) != (among.top1, among.top5)
    assert own.top1 == (predictions.labels == predictions.predicted).mean()
