"""torch.compile of a stage: the same numbers, a recompilation for another resolution only, one line where it fails."""

from pathlib import Path

import pytest
import torch
from timm.layers import use_fused_attn
from torch._dynamo.utils import counters
from training.step import Run, gradients, random_batch, update

import train_imagenet
from config.recipe import load_recipe
from training import compiling, datasets, distributed

ROOT = Path(__file__).resolve().parents[2]


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
    ranks = distributed.Ranks(0, 0, 1, torch.device("cpu"))
    run = Run(recipe, ranks, {"main": datasets.DataSet(None, None, 5)}, torch.float32)
    return run, train_imagenet.begin_stage(run, 0, None, 0), recipe.stages[0]


def train(run, state, stage, steps):
    losses = []
    state.model.train()
    for step in range(steps):
        torch.manual_seed(step)
        loss = gradients(run, state, stage, state.model, *random_batch(run, stage, 32), step=step, seed=0, piece=16)
        update(run, state, stage, loss)
        losses.append(loss.item())
    return losses


class Uncompiled:
    """A validation set of one odd batch."""

    def __init__(self, resolution):
        self.images = torch.zeros(7, resolution, resolution, 3, dtype=torch.uint8)

    def epoch(self, _):
        yield self.images, torch.zeros(7, dtype=torch.int64)


@pytest.mark.slow
@pytest.mark.parametrize("law", ["exact", "subset"])
def test_only_another_resolution_compiles_anew_and_the_numbers_stay(law):
    """Two stages: a graph for the block, one for the mixing, in each; all blocks share theirs."""
    graphs = []
    for resolution in (32, 48):
        expected = train(*begun(resolution, **{"speed.compile": "false", "speed.drop_path": law}), steps=4)
        run, state, stage = begun(resolution, **{"speed.drop_path": law})
        said = []
        compiling.compile_stage(run, state, stage, 16, say=said.append)
        assert said == []
        graphs.append(counters["stats"]["unique_graphs"])
        assert train(run, state, stage, 4) == pytest.approx(expected, abs=1e-5)
        train_imagenet.evaluated(run, stage, [state.model], Uncompiled(resolution))
        train(run, state, stage, 2)
        assert counters["stats"]["unique_graphs"] == graphs[-1], "something was compiled again"
    assert graphs == [2, 4]
    assert counters["graph_break"] == {}


def test_where_it_cannot_compile_one_line_says_so():
    """A C++ compiler that is not there, as on a machine without one."""
    run, state, stage = begun()
    expected = train(*begun(**{"speed.compile": "false"}), steps=2)
    said = []
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        compiling.compile_stage(run, state, stage, 16, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("speed.compile: this platform cannot (")
    assert "\n" not in said[0]
    assert train(run, state, stage, 2) == expected
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_attention_is_fused():
    """One operation, in timm's blocks and on this platform."""
    run, state, stage = begun()
    assert use_fused_attn()
    assert all(block.attn.fused_attn for block in state.model.blocks)
    with torch.profiler.profile() as profile:
        train(run, state, stage, 1)
    names = {event.key for event in profile.key_averages()}
    assert any("scaled_dot_product" in name for name in names)
    assert "aten::softmax" not in names
    assert "aten::_softmax" not in names
