"""A stage, its loader and what that gives, for the tests of loaders."""

from dataclasses import replace

import torch

from config.recipe import BASE_RECIPE, load_recipe
from training import loading

SAMPLES = 96  # of jpg_beton, raw_beton and `encoded`
STAGE = replace(load_recipe(BASE_RECIPE).stages[0], resolution=48, batch=16, mix_chunk=8)


def train(path, stage=STAGE, *, seed=5, shuffle_pages=None, bad_limit=None, **placement):
    return loading.train_loader(
        path, SAMPLES, stage, seed=seed, placement=loading.Placement(**placement), shuffle_pages=shuffle_pages,
        bad_limit=bad_limit,
    )  # fmt: skip


def collected(batches):
    """Copies: FFCV reuses its buffers."""
    return [(images.clone(), labels.clone()) for images, labels in batches]


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
