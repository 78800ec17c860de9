"""How images are prepared comes with the weights: from timm's configuration into evaluation, recipe and export."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import train_imagenet
from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from tools import export
from training.network import weights

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear", "crop_pct": 0.8}


@pytest.fixture
def given(tmp_path):
    """A folder as timm and our export write it, of a model with patches of 8 pixels."""
    folder, arguments = tmp_path / "given", {"img_size": 32, "patch_size": 8, "init_values": 0.5}
    folder.mkdir()
    torch.manual_seed(0)
    network = timm.create_model("deit3_micro_patch16_224", num_classes=5, **arguments).eval()
    torch.nn.init.normal_(network.head.weight)
    save_file(network.state_dict(), folder / "model.safetensors")
    known = {"num_classes": 5, "input_size": [3, 32, 32], "first_conv": "patch_embed.proj", "classifier": "head"}
    content = {"architecture": "deit3_micro_patch16_224", "num_classes": 5, "num_features": 128}
    content |= {"model_args": arguments, "pretrained_cfg": known | SETTINGS}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_the_weights_preparation_is_that_of_evaluation_recipe_and_export(given, tiles, raw_beton, tmp_path, capsys):
    words = ["--cfg", ROOT / "recipes/finetune_own.yaml", f"--data.train={raw_beton}", f"--data.val={raw_beton}",
             "--model.name=deit3_micro_patch16_224", "--model.args=patch_size=8", "--model.layer_scale=0.5",
             "--stage.resolution=32", "--stage.batch=32", "--stage.mix_chunk=32", "--stage.epochs=1",
             "--stage.warmup_epochs=0", "--speed.device=cpu", "--log.tensorboard=false", "--stage.head=keep",
             f"--log.out={tmp_path}", "--log.name=run"]  # fmt: skip
    words, init = list(map(str, words)), f"--init={given}"
    train_imagenet.main([*words, init, "--eval-only", f"--eval.out={tmp_path}"])
    (row,) = json.loads((tmp_path / "evaluations.json").read_text())
    network = timm.create_model(f"local-dir:{given}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        logits = network(torch.stack([prepare(Image.fromarray(tile)) for tile in tiles]))
    labels = torch.arange(96) % 5
    assert row["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)
    assert row["top1"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))

    train_imagenet.main([*words, init])
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.model.mean, recipe.model.std) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    assert (recipe.stages[0].interpolation, recipe.stages[0].eval_crop) == ("bilinear", 0.8)
    capsys.readouterr()
    train_imagenet.main(words)  # who goes on need not name the weights again
    train_imagenet.main(["--eval-only", f"--init={tmp_path}/run", "--speed.device=cpu"])  # nor the recipe
    assert json.loads((tmp_path / "run" / "evaluations.json").read_text())[0]["crop"] == 0.8
    export.main([str(tmp_path / "run"), f"--out={tmp_path}/out"])
    known = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert {name: known[name] for name in SETTINGS} == SETTINGS
    with pytest.raises(SystemExit, match="2"):
        train_imagenet.main([*words, "--model.mean=0.1,0.1,0.1"])  # a key overrides: another run
    assert "model.mean (0.5, 0.4, 0.3), not (0.1, 0.1, 0.1)" in capsys.readouterr().err.replace("[", "(").replace(
        "]", ")"
    )


def test_preparation_of_timms_names():
    found = weights.preprocessing("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert found == {
        "model": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        "stage": {"interpolation": "bicubic", "eval_crop": 0.9},
    }
    assert not any(weights.preprocessing("timm:nothing").values())
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        weights.preprocessing("timm:vit_tiny_patch16_224.nothing")


def test_a_preparation_that_cannot_be_is_refused(given, capsys):
    path = given / "config.json"
    path.write_text(path.read_text().replace("bilinear", "hamming"))
    with pytest.raises(SystemExit, match="2"):
        train_imagenet.main(["--cfg", str(ROOT / "recipes/finetune_own.yaml"), f"--init={given}", "--eval-only"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("args", ["depth", "__import__('os')", "depth=x()", "num_classes=3", "unknown=1"])
def test_arguments_that_cannot_be_are_refused_in_one_line(args, tmp_path, raw_beton, capsys):
    words = ["--cfg", str(ROOT / "recipes/smoke.yaml"), f"--data.train={raw_beton}", f"--data.val={raw_beton}",
             f"--log.out={tmp_path}"]  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        train_imagenet.main([*words, f"--model.args={args}"])
    error = capsys.readouterr().err
    assert "model.args" in error or "with unknown=1" in error
    assert error.count("\n") == 1
