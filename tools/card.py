"""The card of an exported model: README.md and curves.png. Made from what the run's folder holds.

Of paths only file names are shown, and of the environment only versions and the kind of machine.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path

from config.parser import part_of
from config.recipe import render_recipe
from config.schema import DataConfig
from config.text import markdown_table
from ffcv_ops.files import read_regular
from ffcv_ops.storage.beton_file import sidecar
from ffcv_ops.storage.info import exists
from ffcv_ops.storage.shards import files_of
from training.evaluation import records
from training.logging.records import read_rows
from training.planning import cost

CITATION = """@inproceedings{touvron2022deit3,
  title     = {{DeiT III}: Revenge of the {ViT}},
  author    = {Touvron, Hugo and Cord, Matthieu and J{\\'e}gou, Herv{\\'e}},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2022}
}"""

USE = """import timm, torch
from PIL import Image, ImageOps

network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:ORG/NAME"
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")  # as in training: upright, alpha over white
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
with torch.inference_mode():
    logits = network(prepare(picture)[None])
names = network.pretrained_cfg.get("label_names")"""


def write(trained, folder: Path) -> None:
    """Writes the card of `trained` (export.Trained) into `folder`."""
    curves = trained.folder / "curves.png"
    if curves.is_file():
        shutil.copyfile(curves, folder / "curves.png")
    text = "\n\n".join(part for part in _parts(trained, folder) if part)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def _parts(trained, folder):
    recipe, stage, network = trained.recipe, trained.stage, trained.network
    title = trained.folder.resolve().name + ("" if trained.weights.stem == "model" else f", {trained.weights.stem}")
    yield "---\nlibrary_name: timm\npipeline_tag: image-classification\ntags:\n- image-classification\n- timm\n---"
    yield f"# {title}"
    yield (
        f"{recipe.model.name} for images of {stage.eval_side} x {stage.eval_side} pixels,"
        f" {network.num_classes:,} classes, {cost.num_parameters(network):,} parameters; seed {recipe.seed}."
    )
    yield f"## Results\n\n{_results(trained)}"
    if (folder / "curves.png").exists():
        yield "![curves](curves.png)"
    if (folder / "config.json").exists():
        yield f"## Use\n\n```python\n{USE}\n```"
    graphs = [name for name in ("model.pt2", "model.onnx") if (folder / name).exists()]
    if graphs:
        shape = f"(n, 3, {stage.eval_side}, {stage.eval_side})"
        yield (
            f"{' and '.join(graphs)}: float32 images {shape}, normalised by mean"
            f" {list(recipe.model.mean)} and deviation {list(recipe.model.std)} -> logits."
        )
    yield f"## Data\n\n{_data(recipe)}"
    yield f"## Recipe\n\n```yaml\n{_recipe(recipe)}```"
    yield f"## Made with\n\n{_made_with(trained.folder)}"
    yield (
        "## Licence\n\nNone is given here. Whoever publishes this model chooses one that the data allow, and adds it to"
        " the header of this file as `license:`."
    )
    yield f"## Citation\n\n```bibtex\n{CITATION}\n```"


def _results(trained):
    """The accuracy of these weights, then what other evaluations said, then the stages of the run."""
    recipe, stage, parts = trained.recipe, trained.stage, []
    is_best = trained.weights.stem.endswith("_best")
    measure = stage.best if is_best else "top1"
    shown = "ema_top1" if trained.weights.stem == "model_ema" or measure == "ema_top1" else "top1"
    rows = [row for row in read_rows(trained.folder / "log.jsonl") if row["stage"] == stage.name]
    rows = [row for row in rows if row.keys() >= {"top1", shown, measure}]
    if rows:
        sign = -1 if measure == "val_loss" else 1
        row = max(rows, key=lambda row: sign * row[measure]) if is_best else rows[-1]
        data = Path(recipe.data.val if stage.data == "main" else recipe.data.finetune_val).name
        best = ", the best by these images" if is_best else ""
        parts.append(
            f"**Top-1 {100 * row[shown]:.2f} %** on the {row['val_images']:,} images of {data}, after epoch"
            f" {row['epoch']} of stage {stage.name}{best}."
        )
    places = [trained.weights]
    if trained.weights.stem == "model":  # a run's folder stands for its model.safetensors
        places.append(trained.weights.parent)
    names = {str(place.resolve()) for place in places}
    rows = [row for row in records.read(trained.folder) if str(Path(row["weights"]).resolve()) in names]
    parts += [records.table(rows)] if rows else []
    if (report := trained.folder / "report.md").is_file():
        parts.append("\n".join(line for line in report.read_text(encoding="utf-8").splitlines() if line[:1] == "|"))
    return "\n\n".join(parts) or "Not evaluated."


def _data(recipe):
    lines = [("file", "images", "classes", "stored")]
    for value in dataclasses.asdict(recipe.data).values():
        if isinstance(value, str) and value.endswith(".beton"):
            files = [sidecar(file) for file in files_of(value)] if exists(value) else []
            shards = [json.loads(read_regular(file)) for file in files if file.exists()] or [{}]
            settings = shards[0].get("settings", {})
            stored = ", ".join(f"{key} {settings[key]}" for key in ("mode", "quality", "max_side") if key in settings)
            counts = (sum(shard.get("samples", 0) for shard in shards), len(shards[0].get("classes", ())))
            lines.append((Path(value).name, *(f"{count:,}" if count else "-" for count in counts), stored or "-"))
    return markdown_table(lines)


def _recipe(recipe):
    """The resolved recipe, its paths cut down to file names."""
    data = {
        name: Path(value).name if isinstance(value, str) and "/" in value else value
        for name, value in dataclasses.asdict(recipe.data).items()
    }
    shown = dataclasses.replace(recipe, data=DataConfig(**data), log=dataclasses.replace(recipe.log, out="runs"))
    return render_recipe(shown)


def _made_with(folder):
    path = folder / "environment.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    said = [f"commit {content['commit']}"] if "commit" in content else []
    said += [f"{name} {version}" for name, version in content.get("packages", {}).items()]
    if "devices" in content:
        said.append(f"{content.get('ranks', 1)} process(es) on {re.sub(r'[^ -~]', '?', ', '.join(content['devices']))}")
    return ", ".join(said) + "." if said else "Not recorded."


if __name__ == "__main__":
    part_of("python -m tools.export")
