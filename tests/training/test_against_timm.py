"""Our evaluation against timm's own of the same exported model, on the same pictures.

The model is loaded by timm, which reads an ImageFolder with its own transforms (Pillow, bicubic). The same folder is
written as .beton files: raw, or its JPEGs kept as they are, which loses nothing, so that only rounding may differ; and
encoded as JPEG of quality 90, where the difference is what that costs. docs/performance.md has the figures of a trained
run.
"""

import dataclasses
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.dataset import write_images
from config.recipe import load_recipe, render_recipe
from conversion.photos import photographs
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import describe
from tools import export
from training.evaluation.loop import predict
from training.loading import eval_loader
from training.network import model

ROOT = Path(__file__).parents[2]
WHOLE = "--image.max_side=none"
STORED = {
    "raw": [WHOLE, "--image.mode=raw"],
    "kept": [WHOLE],
    "encoded": [WHOLE, "--image.quality=90", "--image.passthrough=false"],
}


class Said(NamedTuple):
    """The logits of each file, by its path below the folder, and the number of its class."""

    logits: dict[str, np.ndarray]
    labels: dict[str, int]

    def top1(self) -> float:
        return float(np.mean([row.argmax() == self.labels[name] for name, row in self.logits.items()]))


class Difference(NamedTuple):
    """Between the logits of the same images, and how large these are; `others`: images whose first class differs."""

    images: int
    others: int
    largest: float
    mean: float
    deviation: float  # of the logits

    @classmethod
    def of(cls, ours: Said, theirs: Said) -> "Difference":
        assert ours.logits.keys() == theirs.logits.keys()
        one, other = (np.stack([said.logits[name] for name in sorted(said.logits)]) for said in (ours, theirs))
        apart = np.abs(one - other)
        others = int((one.argmax(1) != other.argmax(1)).sum())
        return cls(len(one), others, float(apart.max()), float(apart.mean()), float(other.std()))


def write_tiles(root: Path, most: int | None) -> None:
    """The demo's validation tiles as PNG files, in class folders; about `most`, the first of each class."""
    source = photographs()
    val = source.splits["val"]
    for number, name in enumerate(source.classes):
        folder = root / "val" / name
        folder.mkdir(parents=True)
        places = np.flatnonzero(val.labels == number)
        for place in places[: most and -(-most // len(source.classes))]:
            Image.fromarray(val.items[place]).save(folder / f"{place:04d}.png")
    (root / "train").symlink_to("val")


def write_photographs(root: Path, most: int | None) -> None:
    """JPEG files in a folder for each photograph that they are windows of."""
    write_images(root, {"val": most or 200})
    (root / "train").symlink_to("val")


def converted(root: Path, mode: str) -> Path:
    """The folder's val/ as a .beton."""
    out = root.with_name(f"{root.name}_{mode}")
    command = [sys.executable, str(ROOT / "write_datasets.py"), f"--data.source={root}", f"--data.out={out}"]
    done = subprocess.run([*command, *STORED[mode]], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip()}")
    return Path(f"{out}_val.beton")


@torch.inference_mode()
def of_timm(folder: Path, root: Path) -> Said:
    """By timm alone, the way of its validate.py."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    data = timm.data.create_dataset("", root=str(root), split="val", class_map=_classes(root))
    batches = timm.data.create_loader(
        data, batch_size=64, is_training=False, use_prefetcher=False, num_workers=0, device=torch.device("cpu"),
        **{key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")},
    )  # fmt: skip
    found = ((network(images), labels) for images, labels in batches)
    return _said([str(Path("val") / name) for name in data.filenames(basename=False)], found)


def _classes(root):
    return {name: number for number, name in enumerate(sorted(path.name for path in (root / "val").iterdir()))}


def of_ours(trained: export.Trained, beton: Path) -> Said:
    """By the loader and the loop that --eval-only uses."""
    batches = eval_loader(beton, describe(beton).samples, trained.stage, batch=64)
    flip = trained.stage.eval_flip
    found = (
        (predict(trained.network, images, autocast=nullcontext, flip=flip), labels)
        for images, labels in batches.epoch(0)
    )
    return _said(beton.with_suffix(".files.txt").read_text(encoding="utf-8").splitlines(), found)


def _said(names, found):
    """Of the files `names`, in the order of the batches (logits, labels)."""
    batches = [(logits.double().numpy(), labels.tolist()) for logits, labels in found]
    rows, labels = np.concatenate([logits for logits, _ in batches]), [one for _, part in batches for one in part]
    return Said(dict(zip(names, rows, strict=True)), dict(zip(names, labels, strict=True)))


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


@pytest.mark.parametrize("write", [write_tiles, write_photographs], ids=["tiles", "photographs"])
def test_without_loss_only_rounding_differs(trained, tmp_path, write):
    """PNG files that are enlarged, JPEG files that are reduced. Other filters and crops, and JPEG, are told apart."""
    write(tmp_path / "set", 30)
    theirs = of_timm(trained.folder / "exported", tmp_path / "set")
    raw = converted(tmp_path / "set", "raw")
    ours = of_ours(trained, raw)
    apart = Difference.of(ours, theirs)
    assert apart.images >= 30
    assert apart.deviation > 0.3
    assert apart.others == 0
    assert apart.largest < 1e-4
    assert ours.labels == theirs.labels
    assert ours.top1() == theirs.top1()
    for changed in ({"interpolation": "bilinear"}, {"eval_crop": 1.0}):
        other = trained._replace(stage=dataclasses.replace(trained.stage, **changed))
        assert Difference.of(of_ours(other, raw), theirs).largest > 1e-2
    if write is write_photographs:
        kept = of_ours(trained, converted(tmp_path / "set", "kept"))
        assert Difference.of(kept, theirs).largest < 1e-4
    again = of_ours(trained, converted(tmp_path / "set", "encoded"))
    assert Difference.of(again, theirs).mean > 1e-4
