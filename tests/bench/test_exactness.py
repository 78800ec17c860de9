"""Our evaluation against timm's own of the same exported model, on the same pictures."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from bench import exactness
from config.recipe import load_recipe, render_recipe
from tools import export
from training import model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder with random weights, far enough from zero for logits to differ; it evaluates at crop .9."""
    folder = tmp_path_factory.mktemp("run")
    run = load_recipe("recipes/smoke.yaml", {"stage.resolution": "64", "stage.eval_crop": "0.9"})
    (folder / "recipe.yaml").write_text(render_recipe(run))
    torch.manual_seed(0)
    network = model.create(run.model.name, resolution=64, classes=15, drop_path=0.0, layer_scale=1e-4)
    for value in network.parameters():
        if value.ndim < 3:
            torch.nn.init.normal_(value, 0.0, 0.3)
    save_file(network.state_dict(), folder / "model.safetensors")
    found = export.read(folder)
    export.export(found, folder / "exported", ["timm"])
    return found


@pytest.mark.parametrize("write", [exactness.write_tiles, exactness.write_photographs], ids=["tiles", "photographs"])
def test_without_loss_only_rounding_differs(trained, tmp_path, write):
    """PNG files that are enlarged, JPEG files that are reduced. Other filters and crops, and JPEG, are told apart."""
    write(tmp_path / "set", 30)
    theirs = exactness.of_timm(trained.folder / "exported", tmp_path / "set")
    raw = exactness.converted(tmp_path / "set", "raw")
    ours = exactness.of_ours(trained, raw)
    apart = exactness.Difference.of(ours, theirs)
    assert apart.images >= 30
    assert apart.deviation > 0.3
    assert apart.others == 0
    assert apart.largest < 1e-4
    assert ours.labels == theirs.labels
    assert ours.top1() == theirs.top1()
    for changed in ({"interpolation": "bilinear"}, {"eval_crop": 1.0}):
        other = trained._replace(stage=dataclasses.replace(trained.stage, **changed))
        assert exactness.Difference.of(exactness.of_ours(other, raw), theirs).largest > 1e-2
    if write is exactness.write_photographs:
        kept = exactness.of_ours(trained, exactness.converted(tmp_path / "set", "kept"))
        assert exactness.Difference.of(kept, theirs).largest < 1e-4
    again = exactness.of_ours(trained, exactness.converted(tmp_path / "set", "encoded"))
    assert exactness.Difference.of(again, theirs).mean > 1e-4
