"""Kernels are compiled before they are needed: all of them, once, and never for another reason than that."""

import dataclasses
import os

import numba
import pytest

from config.recipe import BASE_RECIPE, load_recipe
from ffcv_ops import compiled, warm_up
from ffcv_ops.errors import UserError
from ffcv_ops.transform import transform_samples
from training.loading import eval_loader, train_loader

pytestmark = pytest.mark.timeout(600)  # a busy machine may take minutes to compile


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """An empty cache folder. A list that grows when kernels would run."""
    runs = []
    monkeypatch.setattr(compiled, "cache_folder", lambda: str(tmp_path))
    monkeypatch.setattr(warm_up, "_run_all", runs.append)
    return runs


def test_loaders_find_everything_compiled(jpg_beton, raw_beton):
    warm_up.prepare_kernels()
    compiled_before = list(numba.typeof(transform_samples).dispatcher.signatures)
    stage = dataclasses.replace(load_recipe(BASE_RECIPE).stages[0], resolution=32, batch=32, mix_chunk=32)
    for path in (jpg_beton, raw_beton):
        for least in (None, 1.2):
            next(iter(train_loader(path, 96, dataclasses.replace(stage, min_oversampling=least), seed=3).epoch(0)))
        next(iter(eval_loader(path, 96, stage, batch=16).epoch(0)))
    assert numba.typeof(transform_samples).dispatcher.signatures == compiled_before


def test_it_speaks_only_when_it_compiles(runs):
    said = []
    warm_up.prepare_kernels(said.append)
    assert said[0].startswith("compiling kernels (once, ") and said[1].startswith("kernels compiled in ")
    warm_up.prepare_kernels(said.append)
    assert len(said) == 2 and len(runs) == 2


def test_other_parameters_are_compiled_too(runs):
    said = []
    warm_up.prepare_kernels(said.append)
    warm_up.prepare_kernels(said.append, (1, 2.0))
    assert len(said) == 4


def test_what_was_interrupted_is_begun_again(runs, monkeypatch):
    def interrupted(params):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(warm_up, "_run_all", interrupted)
        warm_up.prepare_kernels(lambda line: None)
    said = []
    warm_up.prepare_kernels(said.append)
    assert len(said) == 2


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, and a user without an entry in passwd
    compiled.cache_folder.cache_clear()
    with pytest.raises(UserError, match="this user has no home folder, and HOME is not set; set XDG_CACHE_HOME"):
        warm_up.prepare_kernels()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written: Not a directory; set XDG_CACHE_HOME") as raised:
        warm_up.prepare_kernels()
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"NUMBA_DISABLE_JIT is set: .*; unset it"):
        patch.setattr(numba.config, "DISABLE_JIT", 1)
        compiled._numba.__wrapped__()
