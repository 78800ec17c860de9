"""Exported models: timm alone, onnxruntime and torch.export compute what the run's network does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors.torch import load_file, save_file

import train_imagenet
from config.recipe import load_recipe, render_recipe
from ffcv_ops.errors import UserError
from tools import export, graphs
from training.evaluation import records
from training.network import model, weights

ROOT = Path(__file__).resolve().parents[2]
MICRO = {"model.name": "deit3_micro_patch16_224", "stage.resolution": "48"}
RUNS = {
    "micro": {**MICRO, "model.layer_scale": "0.1", "stage.eval_crop": "0.9"},
    "tiny without LayerScale": {"model.name": "deit3_tiny_patch16_224", "stage.resolution": "32",
                                "model.layer_scale": "none"},
    "timm's own ViT": {"model.name": "test_vit", "stage.resolution": "64", "stage.interpolation": "bilinear"},
    "ResNet": {"model.name": "test_resnet", "stage.resolution": "64", "stage.eval_resolution": "96"},
}  # fmt: skip


def run_folder(folder, keys, classes=5, data="none.beton", seed=0):
    """What a finished run leaves, with random weights: heads and LayerScale far from what they begin with."""
    run = load_recipe(ROOT / "recipes/smoke.yaml", {"data.train": str(data), "data.val": str(data), **keys})
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(render_recipe(run))
    torch.manual_seed(seed)
    stage = run.stages[-1]
    network = model.create(
        run.model.name, resolution=stage.resolution, classes=classes, drop_path=0.0,
        layer_scale=run.model.layer_scale, blur_pool=run.model.blur_pool,
    ).eval()  # fmt: skip
    for name, value in network.named_parameters():
        if value.ndim == 1 or "head" in name or "pos_embed" in name:
            torch.nn.init.normal_(value, 0.0, 0.5)
    for name, value in network.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")
    return network


def images(side, samples=3):
    return torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(7))


PLAIN = """
import json, sys, timm, torch
for folder in sys.argv[1:]:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    given = torch.load(f"{folder}.images.pt")
    with torch.inference_mode():
        torch.save(network(given), f"{folder}.logits.pt")
    config = timm.data.resolve_model_data_config(network)
    said = {key: config[key] for key in ("input_size", "interpolation", "crop_pct", "mean", "std")}
    names = network.pretrained_cfg.get("label_names")
    json.dump({**said, "names": names}, open(f"{folder}.config.json", "w"))
"""


def test_timm_alone_loads_every_kind_of_network(tmp_path, jpg_beton):
    data = tmp_path / "set.beton"
    data.symlink_to(jpg_beton)
    (tmp_path / "set.json").write_text(json.dumps({"classes": ["a", "b", "c", "d", "e"]}))
    made = {}
    for name, keys in RUNS.items():
        run, out = tmp_path / "runs" / name, tmp_path / "out" / name
        network = run_folder(run, keys, data=data)
        export.main([str(run), f"--out={out}"])
        side = int(keys.get("stage.eval_resolution", keys["stage.resolution"]))
        torch.save(images(side), f"{out}.images.pt")
        with torch.inference_mode():
            made[out] = (network(images(side)), keys, side)
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        (out / "new").touch()
        assert {path.stat().st_mode for path in out.iterdir()} == {(out / "new").stat().st_mode}, "all may read it"
        (out / "new").unlink()
    command = [sys.executable, "-c", PLAIN, *map(str, made)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    for out, (logits, keys, side) in made.items():
        assert logits.std() > 0.1
        assert torch.allclose(torch.load(f"{out}.logits.pt"), logits, atol=1e-5)
        assert json.loads(Path(f"{out}.config.json").read_text()) == {
            "input_size": [3, side, side], "interpolation": keys.get("stage.interpolation", "bicubic"),
            "crop_pct": float(keys.get("stage.eval_crop", 1)), "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225], "names": ["a", "b", "c", "d", "e"],
        }  # fmt: skip


@pytest.mark.parametrize("keys", [MICRO, {**RUNS["ResNet"], "model.blur_pool": "true"}], ids=["ViT", "blurred ResNet"])
def test_graphs_compute_the_same_for_any_number_of_images(tmp_path, keys, capsys):
    network = run_folder(tmp_path / "run", keys)
    export.main([str(tmp_path / "run"), f"--out={tmp_path / 'out'}", "--formats=pt2,onnx"])
    said = capsys.readouterr().out
    assert "model.onnx" in said and "no class names" in said
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {(tmp_path / "new").stat().st_mode}
    assert session.get_inputs()[0].shape[0] == session.get_outputs()[0].shape[0] == "batch"
    for samples in (1, 7):
        given = images(int(keys.get("stage.eval_resolution", 48)), samples)
        with torch.inference_mode():
            logits = network(given)
            assert torch.allclose(program(given), logits, atol=1e-5)
        (computed,) = session.run(None, {"images": given.numpy()})
        assert np.allclose(computed, logits.numpy(), atol=1e-4)
        assert logits.std() > 0.1


def test_a_file_that_computes_something_else_is_not_exported(tmp_path, monkeypatch, capsys):
    run_folder(tmp_path / "run", MICRO)
    monkeypatch.setattr(graphs, "save_pt2", lambda network, side, path: path.touch())
    for wrong in (lambda given: torch.zeros(len(given), 5), lambda given: torch.full((len(given), 5), torch.nan),
                  lambda given: torch.zeros(1, 5)):  # fmt: skip
        monkeypatch.setattr(graphs, "load_pt2", lambda path, wrong=wrong: wrong)
        with pytest.raises(SystemExit, match="2"):
            export.main([str(tmp_path / "run"), f"--out={tmp_path / 'out'}", "--formats=pt2"])
        assert "model.pt2" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_what_goes_out_can_be_started_from_and_evaluated(tmp_path, jpg_beton, capsys):
    """--init=FOLDER gives the same top-1 as the run, without the run's data to name the classes."""
    data = tmp_path / "set.beton"
    data.symlink_to(jpg_beton)
    (tmp_path / "set.json").write_text(json.dumps({"classes": list("abcde")}))
    network = run_folder(tmp_path / "run", MICRO, data=data)
    export.main([str(tmp_path / "run"), f"--out={tmp_path / 'out'}"])
    read = weights.read(f"local-dir:{tmp_path / 'out'}")
    assert all(torch.equal(value, read[key]) for key, value in network.state_dict().items())
    assert weights.class_names(tmp_path / "out") == tuple("abcde")
    other = tmp_path / "other.beton"
    other.symlink_to(jpg_beton)
    (tmp_path / "other.json").write_text(json.dumps({"classes": list("edcba")}))
    rows = {}
    for init, val, train in (("run", data, data), ("out", data, "none"), ("out", other, "none")):
        data_keys = [f"--data.val={val}", f"--data.train={train}", f"--eval.out={tmp_path}"]
        recipe_of_run = ["--cfg", str(tmp_path / "run/recipe.yaml")]
        train_imagenet.main([*recipe_of_run, "--eval-only", f"--init={tmp_path / init}", *data_keys])
        rows[init, val] = json.loads((tmp_path / records.FILE).read_text())[-1]
    assert rows["run", data]["loss"] == rows["out", data]["loss"]
    assert rows["out", other]["loss"] != rows["out", data]["loss"], "its labels are the same numbers for other names"
    assert not (tmp_path / "out" / records.FILE).exists()


def test_the_averaged_weights_and_a_stages(tmp_path):
    network = run_folder(tmp_path / "run", {"model.name": "deit3_micro_patch16_224"})
    state = load_file(tmp_path / "run" / "model.safetensors")
    first = model.create("deit3_micro_patch16_224", resolution=32, classes=5, drop_path=0.0, layer_scale=1e-4)
    save_file({key: value + 1 for key, value in state.items()}, tmp_path / "run" / "model_ema.safetensors")
    save_file(first.state_dict(), tmp_path / "run" / "first_32.safetensors")
    for name, bias, side in (("model_ema", network.head.bias + 1, 48), ("first_32", first.head.bias, 32)):
        export.main([str(tmp_path / "run" / f"{name}.safetensors"), f"--out={tmp_path / name}"])
        assert torch.equal(load_file(tmp_path / name / "model.safetensors")["head.bias"], bias)
        assert json.loads((tmp_path / name / "config.json").read_text())["model_args"]["img_size"] == side
    (tmp_path / "run" / "other.safetensors").touch()
    for source, words in (("run/other.safetensors", "it must be one of first_32.safetensors"),
                          ("run/recipe.yaml", "neither a run"), ("model_ema", "there is no recipe.yaml")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            export.read(tmp_path / source)


def epoch_row(epoch, top1):
    """Of the log of a run of smoke.yaml."""
    last = load_recipe(ROOT / "recipes/smoke.yaml").stages[-1].name
    zeros = dict.fromkeys(("lr", "loss", "grad_norm", "images_per_s", "wait", "seconds", "top5", "val_loss"), 0.0)
    return {"kind": "epoch", "stage": last, "epoch": epoch, "step": epoch, "top1": top1, "val_images": 96, **zeros}


def test_the_card_of_the_best_weights_and_of_averaged_ones_names_theirs(tmp_path):
    run_folder(tmp_path / "run", MICRO)
    rows = [{**epoch_row(1, 0.5), "ema_top1": 0.125}, {**epoch_row(2, 0.25), "ema_top1": 0.375}]
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = f"{rows[0]['stage']}_best"
    for name, said in ((best, "**Top-1 50.00 %**"), ("model_ema", "**Top-1 37.50 %**")):
        (tmp_path / "run" / f"{name}.safetensors").symlink_to("model.safetensors")
        export.main([str(tmp_path / "run" / f"{name}.safetensors"), f"--out={tmp_path / name}"])
        assert said in (tmp_path / name / "README.md").read_text()


def test_the_card_shows_results_and_no_paths(tmp_path, jpg_beton, capsys):
    data = tmp_path / "secret" / "set.beton"
    data.parent.mkdir()
    data.symlink_to(jpg_beton)
    (tmp_path / "secret" / "set.json").write_text(
        json.dumps({"classes": list("abcde"), "samples": 96, "source": str(tmp_path), "settings": {"quality": 90}})
    )
    run = tmp_path / "secret" / "run"
    run_folder(run, {**MICRO, "log.out": str(tmp_path / "secret")}, data=data)
    (run / "environment.json").write_text(json.dumps({"commit": "abc123", "packages": {"timm": "9.9"}, "host": "h"}))
    (run / "curves.png").write_bytes(b"PNG")
    (run / "report.md").write_text(f"# run in {tmp_path}\n\n| stage | minutes |\n|---|---|\n| first | 7 |\n")
    train_imagenet.main(["--cfg", str(run / "recipe.yaml"), "--eval-only", f"--init={run}"])
    (row,) = json.loads((run / records.FILE).read_text())
    records.write(run, [{**row, "weights": "other.safetensors", "top1": 0.123456}])
    (run / "log.jsonl").write_text("".join(json.dumps(epoch_row(n, top1)) + "\n" for n, top1 in ((1, 0.5), (2, 0.25))))
    export.main([str(run), f"--out={tmp_path / 'out'}"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.index("**Top-1 25.00 %** on the 96 images of set.beton, after epoch 2 of stage") < card.index(
        "import timm"
    )
    for words in (f" {100 * row['top1']:.3f} |", "| set.beton | 96 | 5 |", "commit abc123, timm 9.9",
                  "name: deit3_micro_patch16_224", "curves.png", "| first | 7 |", "library_name: timm",
                  "Revenge of the"):  # fmt: skip
        assert words in re.sub(" +", " ", card)
    assert "12.346" not in card
    for path in (tmp_path / "out").iterdir():
        assert b"secret" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()
    assert not any(line.startswith("license:") for line in card.splitlines())


def test_an_export_replaces_an_export_and_nothing_else(tmp_path, capsys):
    run_folder(tmp_path / "run", MICRO)
    out = tmp_path / "out"
    for _ in range(2):
        export.main([str(tmp_path / "run"), f"--out={out}"])
    (out / "thesis.tex").touch()
    for given, words in ((f"--out={out}", "choose another --out"), ("--out=x --formats=timm,tf", "must be some of"),
                         ("--out=x --push-to-hub=name", "must be ORG/NAME")):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            export.main([str(tmp_path / "run"), *given.split()])
        assert words in capsys.readouterr().err
    assert (out / "thesis.tex").exists()
    run_folder(tmp_path / "blurred", {**RUNS["ResNet"], "model.blur_pool": "true"})
    with pytest.raises(SystemExit, match="2"):
        export.main([str(tmp_path / "blurred"), f"--out={tmp_path / 'other'}"])
    assert "use --formats=pt2,onnx" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


class Hub:
    """The two calls of HfApi that a push makes."""

    def __init__(self, failure=None):
        self.calls, self.failure = [], failure

    def create_repo(self, *arguments, **options):
        if self.failure:
            raise self.failure
        self.calls.append(("create_repo", arguments, options))

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))
        return "the commit"


def test_a_push_takes_the_exports_files_to_a_private_repository(tmp_path):
    run_folder(tmp_path / "run", MICRO)
    out = tmp_path / "out"
    export.main([str(tmp_path / "run"), f"--out={out}"])
    (out / "token.txt").write_text("hf_secret")
    hub = Hub()
    assert export.push(out, "me/demo", hub).endswith("the commit")
    assert hub.calls[0] == ("create_repo", ("me/demo",), {"private": True, "exist_ok": True})
    options = hub.calls[1][1]
    assert (options["repo_id"], options["folder_path"]) == ("me/demo", str(out))
    assert options["allow_patterns"] == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(UserError, match=r"me/demo: not pushed \(LocalTokenNotFoundError: log in") as refusal:
        export.push(out, "me/demo", Hub(LocalTokenNotFoundError("log in\nplease")))
    assert "\n" not in str(refusal.value)


def test_the_partial_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"x\.partial is there and not what a killed export left"):
        export.export(None, tmp_path / "x", ["timm"])
    assert (tmp_path / "x.partial" / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"--out=/: it needs a name"):
        export.export(None, Path("/tmp").parent, ["timm"])
