"""speed.deterministic: what it asks of torch, and one line where torch cannot. Bits on a GPU: tests/test_gpu.py."""

import os

import pytest
import torch
from torch._inductor import config as inductor

from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from training import distributed, repeatable
from training.datasets import DataSet
from training.run import Run
from training.stage import create_stage


@pytest.fixture
def deterministic(monkeypatch):
    """Deterministic within a test; afterwards torch is as it was."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    with inductor.patch({}):
        repeatable.make_deterministic()
        yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(True)


def test_what_torch_is_asked_for(deterministic):
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # flash attention would only warn
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert getattr(inductor, "deterministic", True)


def test_an_operation_that_cannot_repeat_is_one_line(deterministic):
    """put_, of torch's own list of such operations, has no deterministic way on any device."""
    line = r"^speed.deterministic: torch has no deterministic put_, .* leave it out$"
    with pytest.raises(UserError, match=line), repeatable.explained():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="something else"), repeatable.explained():
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [("resnet10t", "false", True), ("resnet10t", "true", False), ("deit3_micro_patch16_224", "false", False)],
)
def test_ways_to_convolve_are_tried_for_convolutional_models_only(name, key, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not expected)
    keys = {"model.name": name, "model.layer_scale": "none", "stage.drop_path": "0", "speed.deterministic": key}
    ranks, sets = distributed.Ranks(0, 1, torch.device("cpu")), {"main": DataSet(None, None, 5)}
    create_stage(Run(load_recipe("recipes/smoke.yaml", keys), ranks, sets, torch.float32), 0)
    assert torch.backends.cudnn.benchmark is expected
