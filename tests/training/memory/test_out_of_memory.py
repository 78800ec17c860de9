"""A device that runs out of memory: one line that names a micro-batch."""

import re

import pytest
import torch

from config.recipe import BASE_RECIPE, load_recipe
from ffcv_ops.errors import UserError
from training import distributed
from training.memory import micro_batch, out_of_memory
from training.run import Run


@pytest.mark.parametrize("share, piece, words", [
    (64, 32, "for 32 samples at once (speed.micro_batch); try --speed.micro_batch=16,"),
    (48, 48, "for 48 samples at once (speed.micro_batch); try --speed.micro_batch=24,"),
    (64, 2, "for 2 samples at once (speed.micro_batch); use a smaller model or --speed.parallel=fsdp,"),
])  # fmt: skip
def test_too_little_memory_names_a_micro_batch_that_is_possible(share, piece, words):
    recipe = load_recipe(BASE_RECIPE, {"stage.batch": str(2 * share), "stage.mix_chunk": str(share)})
    run = Run(recipe, distributed.Ranks(0, 2, torch.device("cpu")), {}, torch.float32)
    with pytest.raises(UserError) as caught, out_of_memory.explained_in_training(run, recipe.stages[0], piece):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
    said = str(caught.value)
    assert f"stage train: cpu has too little memory {words}" in said
    assert "\n" not in said
    with (
        pytest.raises(RuntimeError, match="another"),
        out_of_memory.explained_in_training(run, recipe.stages[0], piece),
    ):
        raise RuntimeError("another")


@pytest.mark.parametrize("share, batch, piece, words", [
    (64, 64, 32, "64 images at once; try --speed.micro_batch=32, the same command then goes on"),
    (48, 64, 6, "64 images at once; try --speed.micro_batch=6, the same command then goes on"),
    (48, 64, None, "64 images at once; try --speed.micro_batch=24"),
    (64, 2, None, "2 images at once; use a smaller model"),
])  # fmt: skip
def test_so_does_an_evaluation(share, batch, piece, words):
    """And with the number that it names, an evaluation takes no more than that at once."""
    recipe = load_recipe(BASE_RECIPE, {"stage.batch": str(2 * share), "stage.mix_chunk": str(share)})
    run = Run(recipe, distributed.Ranks(0, 2, torch.device("cpu")), {}, torch.float32)
    with (
        pytest.raises(UserError) as caught,
        out_of_memory.explained_in_evaluation(run, recipe.stages[0], batch, micro_batch_size=piece),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
    said = str(caught.value)
    assert f"stage train: cpu has too little memory to evaluate {words}" in said
    assert "\n" not in said
    assert ("checkpoint" in said) == (piece is not None)
    if found := re.search(r"micro_batch=(\d+)", said):
        assert micro_batch.for_evaluation(int(found[1]), int(found[1])) == int(found[1]) < batch
        assert micro_batch.for_evaluation(int(found[1])) == int(found[1])
    with (
        pytest.raises(RuntimeError, match="another"),
        out_of_memory.explained_in_evaluation(run, recipe.stages[0], batch),
    ):
        raise RuntimeError("another")
