"""A finished run -> a folder that timm loads, with a model card; torch.export and ONNX on request.

    python -m tools.export runs/demo --out=exported/demo
    python -m tools.export runs/demo/model_ema.safetensors --out=exported/demo --formats=timm,pt2,onnx
    python -m tools.export runs/demo --out=exported/demo --push-to-hub=ORG/NAME

    model.safetensors, config.json   timm.create_model("local-dir:exported/demo", pretrained=True), anywhere
    model.pt2, model.onnx            the same network without any Python class; any number of images at a time
    README.md, curves.png            the card: results, data, recipe, versions

Every file is loaded again and its logits are held against the run's own before the folder gets its name. Images go
in as timm's evaluation transform makes them: float32 (n, 3, side, side), normalised. `--init=FOLDER` reads it back.
"""

import argparse
import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from config.parser import Parser
from ffcv_ops.errors import UserError, exits_cleanly, writing

FORMATS = {"timm": "model.safetensors", "pt2": "model.pt2", "onnx": "model.onnx"}  # and the file of each


def parse(argv=None) -> argparse.Namespace:
    """The command line, checked; `formats` as a list."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", help="a run's folder, or a .safetensors file in it: model_ema, or that of a stage")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--formats", default="timm", help=f"some of {','.join(FORMATS)}; only timm without it")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the folder; a new repository is private")
    options = parser.parse_args(argv)
    options.formats = options.formats.split(",")
    if not set(options.formats) <= set(FORMATS):
        raise UserError(f"--formats={','.join(options.formats)}: it must be some of {','.join(FORMATS)}")
    if options.push_to_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", options.push_to_hub):
        raise UserError(f"--push-to-hub={options.push_to_hub}: it must be ORG/NAME")
    return options


if __name__ == "__main__":  # --help and mistakes are answered here: the imports below take seconds
    exits_cleanly(parse)()

import timm
import torch
from safetensors.torch import save
from timm.data import ImageNetInfo
from torch import nn

from config.recipe import Recipe, StageConfig, load_recipe
from config.text import markdown_table
from tools import card, graphs
from training.datasets import files_of
from training.distributed import Ranks
from training.evaluation.evaluate_only import load_model
from training.evaluation.labels import output_names
from training.network import model, weights
from training.planning import cost
from training.run import Run

FILES = (*FORMATS.values(), "config.json", "model.onnx.data", "README.md", "curves.png")
TOLERANCE = 1e-3  # of logits, as a share of the largest; float32 on another path of kernels is at 1e-6


class Trained(NamedTuple):
    """What a run's folder holds of one network: the file of its weights, the stage that it ended, the names of its
    outputs where they are known, and itself, on the CPU in evaluation mode."""

    folder: Path
    weights: Path
    recipe: Recipe
    stage: StageConfig
    names: tuple[str, ...] | None
    network: nn.Module


@exits_cleanly
def main(argv=None) -> None:
    options = parse(argv)
    trained = read(options.run)
    print(export(trained, options.out, options.formats))
    if options.push_to_hub:
        print(push(options.out, options.push_to_hub))


def read(source: str | Path) -> Trained:
    """The network of a run's folder or of a file of weights in it; UserError where that is none."""
    path = Path(source)
    folder, file = (path, path / "model.safetensors") if path.is_dir() else (path.parent, path)
    if not (folder / "recipe.yaml").is_file() or file.suffix != ".safetensors":
        raise UserError(f"{source}: neither a run's folder nor a .safetensors file in one (there is no recipe.yaml)")
    recipe = load_recipe(folder / "recipe.yaml")
    stages = {stage.name: stage for stage in recipe.stages} | dict.fromkeys(("model", "model_ema"), recipe.stages[-1])
    stages |= {f"{name}_best": stage for name, stage in stages.items()}
    if file.stem not in stages:
        raise UserError(f"{file}: it must be one of {', '.join(f'{name}.safetensors' for name in stages)}")
    stage = stages[file.stem]
    run = Run(dataclasses.replace(recipe, stages=(stage,)), Ranks(0, 1, torch.device("cpu")), {}, torch.float32)
    network = load_model(run, weights.read(file))
    names = output_names(network.num_classes, None, *files_of(recipe, stage.data)).names
    return Trained(folder, file, recipe, stage, names, network.to(memory_format=torch.contiguous_format))


def export(trained: Trained, out: Path, formats: Sequence[str]) -> str:
    """Writes the folder `out`, in place of an older export. Returns what the console says. Where a file's logits are
    not the run's, nothing is left."""
    if not out.name:
        raise UserError(f"--out={out}: it needs a name of its own, such as exported/demo")
    if out.exists() and (not out.is_dir() or any(path.name not in FILES for path in out.iterdir())):
        raise UserError(f"{out} is there and no folder of an export; choose another --out")
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists() and (not partial.is_dir() or any(path.name not in FILES for path in partial.iterdir())):
        raise UserError(f"{partial} is there and not what a killed export left; move it or choose another --out")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(out):
        partial.mkdir(parents=True)
    try:
        differences = {FORMATS[name]: WRITERS[name](trained, partial) for name in FORMATS if name in formats}
        card.write(trained, partial)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    network, side = trained.network, trained.stage.eval_side
    lines = [("file", "MB", "largest difference of a logit")]
    for path in sorted(out.iterdir()):
        difference = f"{differences[path.name]:.1e}" if path.name in differences else "-"
        lines.append((path.name, f"{path.stat().st_size / 1e6:.2f}", difference))
    size = f"{network.num_classes:,} classes, {side} px, {cost.num_parameters(network):,} parameters"
    about = f"{trained.recipe.model.name}, {size}"
    if trained.names is None:
        about += "; no class names, because the recipe's data are not there or name none"
    return f"{out}: {about}\n\n{markdown_table(lines)}"


# --- formats: each writes its files, loads them again and returns the largest difference of a logit ----------------


def _timm(trained: Trained, folder: Path) -> float:
    if trained.recipe.model.blur_pool:
        fault = "with model.blur_pool images are blurred before strided convolutions, and timm has no such network"
        raise UserError(f"{trained.folder}: {fault}; use --formats=pt2,onnx")
    state = {key: value.contiguous() for key, value in trained.network.state_dict().items()}
    # safetensors' own save_file makes a file that nobody else may read (mode 600).
    (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(config(trained), indent=1) + "\n", encoding="utf-8")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return _difference(trained, loaded, "timm")


def _pt2(trained: Trained, folder: Path) -> float:
    graphs.save_pt2(trained.network, trained.stage.eval_side, folder / "model.pt2")
    return _difference(trained, graphs.load_pt2(folder / "model.pt2"), "model.pt2")


def _onnx(trained: Trained, folder: Path) -> float:
    graphs.save_onnx(trained.network, trained.stage.eval_side, folder / "model.onnx")
    return _difference(trained, graphs.load_onnx(folder / "model.onnx"), "model.onnx")


WRITERS = {"timm": _timm, "pt2": _pt2, "onnx": _onnx}


@torch.inference_mode()
def _difference(trained, other, name) -> float:
    """Of one image and of five, which no graph was made with."""
    generator, side, largest = torch.Generator().manual_seed(0), trained.stage.eval_side, 0.0
    for samples in (1, 5):
        images = torch.randn(samples, 3, side, side, generator=generator)
        ours, theirs = trained.network(images), other(images)
        if ours.shape != theirs.shape:
            raise UserError(f"{name} gives logits of shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
        difference = float((ours - theirs).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
            raise UserError(f"{name} computes other logits than the run's network, by up to {difference:.3g}")
        largest = max(largest, difference)
    return largest


def config(trained: Trained) -> dict:
    """timm's config.json: how to build the network, how to prepare its images, what its outputs are called."""
    recipe, stage, network = trained.recipe, trained.stage, trained.network
    name = recipe.model.name.partition(".")[0]
    known = timm.get_pretrained_cfg(name)
    arguments = {"img_size": stage.eval_side} if known.fixed_input_size else {}
    if name.startswith("deit3_"):
        arguments["init_values"] = recipe.model.layer_scale or 0.0
    arguments |= model.arguments(recipe.model.args)
    if name in model.SHAPES:
        name, arguments = "deit3_small_patch16_224", model.SHAPES[name] | arguments
    content = {
        "architecture": name,
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": network.num_classes,
            "input_size": [3, stage.eval_side, stage.eval_side],
            "fixed_input_size": bool(known.fixed_input_size),
            "interpolation": stage.interpolation,
            "crop_pct": stage.eval_crop,
            "crop_mode": "center",
            "mean": recipe.model.mean,
            "std": recipe.model.std,
            "first_conv": known.first_conv,
            "classifier": known.classifier,
        },
    }
    if trained.names is not None:
        content["label_names"] = list(trained.names)
        words = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
        if all(label in words for label in trained.names):
            content["label_descriptions"] = {label: words[label] for label in trained.names}
    return content


# --- the hub -------------------------------------------------------------------------------------------------------


def push(folder: Path, name: str, api=None) -> str:
    """Uploads the export in `folder` to the repository `name`, made private where it is new. `api`: a HfApi; it finds
    the user's token by itself."""
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    files = sorted(path.name for path in folder.iterdir() if path.name in FILES)
    try:
        api.create_repo(name, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=str(folder), allow_patterns=files, commit_message=f"Add {folder.name}"
        )
    except Exception as error:  # no token, no network, no right to it: each has errors of its own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{name}: not pushed ({reason:.200}); {folder} is complete") from error
    return f"pushed {', '.join(files)}: {done}"


if __name__ == "__main__":
    main()
