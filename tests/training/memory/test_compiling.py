"""torch.compile of a stage: the same numbers, a recompilation for another resolution only, one line where it fails."""

from pathlib import Path

import pytest
import torch
from timm.layers import use_fused_attn
from torch._dynamo.utils import counters

import train_imagenet
from config.recipe import load_recipe
from tests.training.one_step import take_step
from training import datasets, distributed
from training.memory import compiling
from training.memory.micro_batch import random_batch
from training.run import Run
from training.stage import create_stage

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def fresh():
    """Each test compiles for itself."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def begun(resolution=32, **keys):
    keys = {"stage.resolution": str(resolution), "stage.batch": "32", "stage.drop_path": "0.3",
            "speed.compile": "true"} | keys  # fmt: skip
    recipe = load_recipe(ROOT / "recipes/smoke.yaml", keys)
    ranks = distributed.Ranks(0, 1, torch.device("cpu"))
    run = Run(recipe, ranks, {"main": datasets.DataSet(None, None, 5)}, torch.float32)
    stage = create_stage(run, 0)
    stage.micro_batch_size = 16
    return run, stage


def train(run, stage, steps):
    losses = []
    stage.model.train()
    for stage.step_in_epoch in range(steps):
        torch.manual_seed(stage.step_in_epoch)
        losses.append(take_step(run, stage, *random_batch(run, stage.config, 32))[0])
    return losses


def compile_stage(run, stage):
    said = []
    compiling.compile_stage(run, stage, train_imagenet.forward_backward, say=said.append)
    return said


class Uncompiled:
    """A validation set of one odd batch."""

    def __init__(self, resolution):
        self.images = torch.zeros(7, resolution, resolution, 3, dtype=torch.uint8)

    def epoch(self, _, resolution=None):
        yield self.images, torch.zeros(7, dtype=torch.int64)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "subset"])
def test_only_another_resolution_compiles_anew_and_the_numbers_stay(mode):
    """Two stages: a graph for the block, one for the mixing, in each; all blocks share theirs."""
    for resolution in (32, 48):
        expected = train(*begun(resolution, **{"speed.compile": "false", "speed.drop_path": mode}), steps=4)
        run, stage = begun(resolution, **{"speed.drop_path": mode})
        counters.clear()
        assert compile_stage(run, stage) == []
        assert counters["stats"]["unique_graphs"] == 2
        assert train(run, stage, 4) == pytest.approx(expected, abs=1e-5)
        stage.val_loader = Uncompiled(resolution)
        train_imagenet.evaluate_stage(run, stage, may_be_last=False)
        train(run, stage, 2)
        assert counters["stats"]["unique_graphs"] == 2, "something was compiled again"
    assert counters["graph_break"] == {}


@pytest.mark.slow
def test_each_of_nine_stages_is_compiled():
    """Dynamo runs a function eagerly once it holds eight versions of it, with a warning only."""
    for resolution in range(16, 16 * 10, 16):
        run, stage = begun(resolution)
        counters.clear()
        compile_stage(run, stage)
        assert counters["stats"]["unique_graphs"] == 2, resolution


def test_where_it_cannot_compile_one_line_says_so():
    """A C++ compiler that is not there, as on a machine without one."""
    run, stage = begun()
    expected = train(*begun(**{"speed.compile": "false"}), steps=2)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        said = compile_stage(run, stage)
    assert len(said) == 1
    assert said[0].startswith("speed.compile: this platform cannot (")
    assert "\n" not in said[0]
    assert train(run, stage, 2) == expected
    assert all(parameter.grad is None for parameter in stage.model.parameters())


def test_too_little_memory_is_not_taken_for_a_platform_that_cannot(monkeypatch):
    run, stage = begun()

    def crowded(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compiling.compile_stage(run, stage, crowded, say=pytest.fail)


def test_attention_is_fused():
    """One operation, in timm's blocks and on this platform."""
    run, stage = begun()
    assert use_fused_attn()
    assert all(block.attn.fused_attn for block in stage.model.blocks)
    with torch.profiler.profile() as profile:
        train(run, stage, 1)
    names = {event.key for event in profile.key_averages()}
    assert any("scaled_dot_product" in name for name in names)
    assert "aten::softmax" not in names
    assert "aten::_softmax" not in names


@pytest.mark.parametrize("graphs", ["false", "true"])
@pytest.mark.parametrize(
    ("word", "modes"),
    [("true", (None, "reduce-overhead")), ("max-autotune", ("max-autotune-no-cudagraphs", "max-autotune"))],
)
def test_max_autotune_is_torchs_mode(monkeypatch, graphs, word, modes):
    run, stage = begun(**{"speed.compile": word, "speed.cuda_graphs": graphs})
    stage.micro_batch_size = 32
    seen = set()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *, mode, dynamic: seen.add(mode))
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    assert compile_stage(run, stage) == []
    assert seen == {modes[graphs == "true"]}
