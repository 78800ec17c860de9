"""Does our evaluation say what timm's does of the same model?

    python -m bench.exactness runs/demo [--quick] [--json FILE]

The run is exported and loaded by timm, which reads an ImageFolder with its own transforms (Pillow, bicubic). The same
folder is written as .beton files: raw, or its JPEGs kept as they are, which loses nothing, so that only rounding may
differ; and encoded as JPEG of quality 90, where the difference is what that costs. Two folders: the demo's validation
tiles before they are encoded (PNG, enlarged by the evaluation), and photographs like ImageNet's (JPEG of 500 pixels,
reduced by it), of which the run knows no classes: there only the outputs are compared.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from PIL import Image

from bench import corpus, machine, report
from conversion.photos import photographs
from ffcv_ops.errors import UserError, exits_cleanly
from ffcv_ops.loader import eval_loader
from ffcv_ops.storage.index import describe
from tools import export
from training.evaluation.loop import predict

ROOT = Path(__file__).parents[1]
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


@exits_cleanly
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/demo", help="the folder of a run on the bundled photographs")
    parser.add_argument("--quick", action="store_true", help="a few images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    trained = export.read(options.run)
    rows, lines = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export.export(trained, folder / "model", ["timm"])
        most = 40 if options.quick else None
        for task, labelled in (("tiles", True), ("photographs", False)):
            root = folder / task
            (write_tiles if labelled else write_photographs)(root, most)
            theirs = of_timm(folder / "model", root)
            for mode in ("raw", "encoded") if labelled else STORED:
                ours = of_ours(trained, converted(root, mode))
                apart = Difference.of(ours, theirs)
                top1 = [f"{100 * said.top1():.2f}" if labelled else "-" for said in (theirs, ours)]
                lines.append(
                    [f"{task}, {mode}", f"{apart.images}", *top1, f"{apart.others}", f"{apart.largest:.1e}",
                     f"{apart.mean:.1e}", f"{apart.deviation:.2f}"]
                )  # fmt: skip
                if labelled:
                    rows.append(report.row(f"{task}, {mode}", "timm", [100 * theirs.top1()], "top-1 %"))
                    rows.append(report.row(f"{task}, {mode}", "ours", [100 * ours.top1()], "top-1 %"))
                for name in ("others", "largest", "mean"):
                    unit = "images" if name == "others" else "logit"
                    rows.append(report.row(f"{task}, {mode}", f"ours - timm, {name}", [getattr(apart, name)], unit))
    header = ["images", "n", "top-1 % timm", "top-1 % ours", "first class differs", "largest difference", "mean",
              "logits' deviation"]  # fmt: skip
    report.show(report.Grid(f"{options.run}: our evaluation and timm's", header, lines))
    if options.json:
        report.write_json(options.json, machine.describe(), rows)


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
    corpus.write_images(root, {"val": most or 200})
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


if __name__ == "__main__":
    main()
