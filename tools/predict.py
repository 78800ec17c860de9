"""Pictures -> what a model says of each, as CSV or JSON: by a run, or by an export without its run.

    python -m tools.predict runs/demo photographs/ --out=predictions.csv
    python -m tools.predict exported/demo a.jpg b.png --out=predictions.json --top=3 --probabilities
    python -m tools.predict runs/demo pets/val --out=predictions.csv --sheet=mistakes.png --features=features.npz

A row a picture: file, label (the folder that it lies in, where that is a class), class and probability, then the same
of the second best and so on up to --top. --features: the vector before the classifier, float32 (pictures, channels),
beside the files' names. --sheet: the mistakes of which the model was surest. Pictures are read as conversion reads
them: upright, alpha over white. One that cannot be read costs a line and its row says why.
"""

import argparse
import csv
import functools
import json
from pathlib import Path
from typing import NamedTuple

from config.parser import Parser
from ffcv_ops.errors import UserError, exits_cleanly, writing

SHOWN, ACROSS = 24, 6  # pictures of the sheet, and in a row of it


def parse(argv=None) -> argparse.Namespace:
    """The command line, checked."""
    parser = Parser(prog="python -m tools.predict", description=__doc__)
    parser.add_argument("model", help="a run's folder, a .safetensors file in one, or the folder of an export")
    parser.add_argument("pictures", nargs="+", type=Path, help="image files, and folders that are searched for them")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .csv or .json to write")
    parser.add_argument("--top", type=int, default=1, help="classes for each picture, the best first")
    parser.add_argument("--probabilities", action="store_true", help="a column with the probability of each class too")
    parser.add_argument("--features", type=Path, metavar="FILE", help="an .npz to write: files and features")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a picture to write: the surest mistakes")
    parser.add_argument("--batch", type=int, default=64, help="pictures at a time")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda where there is one"
    )
    options = parser.parse_args(argv)
    for name, kinds in (("out", (".csv", ".json")), ("features", (".npz",)), ("sheet", (".png", ".jpg", ".pdf"))):
        path = getattr(options, name)
        if path and path.suffix not in kinds:
            raise UserError(f"--{name}={path}: its name must end with {' or '.join(kinds)}")
        if path and not path.parent.is_dir():
            raise UserError(f"--{name}={path}: there is no folder {path.parent}")
    for name in ("top", "batch"):
        if not 1 <= getattr(options, name) <= 10_000:
            raise UserError(f"--{name}={getattr(options, name)}: it must be 1 to 10,000")
    return options


if __name__ == "__main__":  # --help and mistakes are answered here: the imports below take seconds
    exits_cleanly(parse)()

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conversion.rgb import read_image
from conversion.sources.folder import image_paths
from conversion.sources.selection import LeftOut
from ffcv_ops.files import write_atomically
from ffcv_ops.host import usable_cores
from tools import export
from tools.preview import Panel, sheet
from training.network import weights


class Model(NamedTuple):
    """A network in evaluation mode, timm's transform for its images, the names of its outputs, and whether its logits
    are the mean of an image's and its mirror image's."""

    network: nn.Module
    transform: object
    names: tuple[str, ...]
    flip: bool = False


@exits_cleanly
def main(argv=None) -> None:
    options = parse(argv)
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    if device != options.device != "auto":
        raise UserError("--device=cuda: torch finds no GPU; leave it out, or take cpu")
    files, model = listed(options.pictures), load(options.model)
    probabilities, features, faults = predict(model, files, batch=options.batch, device=device)
    labels = [path.parent.name if path.parent.name in model.names else None for path in files]
    rows = rows_of(files, labels, model.names, probabilities, top=options.top, every=options.probabilities)
    for number, reason in faults.items():
        rows[number] = {"file": str(files[number]), "error": reason}
    with writing(options.out):
        write_atomically(options.out, lambda path: write(path, rows, options.out.suffix))
    if options.features:
        read = [number for number in range(len(files)) if number not in faults]
        with writing(options.features), options.features.open("wb") as file:
            np.savez(file, files=[str(files[number]) for number in read], features=features[read])
    said = f"{options.out}: {len(files) - len(faults):,} pictures by {options.model}"
    rated = [number for number, label in enumerate(labels) if label is not None and number not in faults]
    if rated:
        said += "; " + rating(rated, labels, [model.names[best] for best in probabilities.argmax(1)])
    if options.sheet:
        draw_mistakes(options.sheet, [(files[n], rows[n]) for n in rated if rows[n]["class"] != labels[n]])
    print(said)
    for number, reason in faults.items():
        print(f"{files[number]}: {reason}")


def rating(rated: list[int], labels: list[str], said: list[str]) -> str:
    """How often the pictures of these numbers are right, over all and as the mean of the classes."""
    right = {number: said[number] == labels[number] for number in rated}
    classes = {labels[number] for number in rated}
    by_class = [np.mean([right[n] for n in rated if labels[n] == label]) for label in classes]
    return (
        f"{sum(right.values()):,} of {len(rated):,} right ({np.mean([*right.values()]):.2%}; mean of {len(classes):,}"
        f" classes {np.mean(by_class):.2%})"
    )


def listed(places: list[Path]) -> list[Path]:
    """The files named, and the images below the folders; UserError where there are none."""
    files = []
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder")
        files += map(Path, image_paths(place, LeftOut())) if place.is_dir() else [place]
    if not files:
        raise UserError(f"{', '.join(map(str, places))}: no images there")
    return files


def load(source: str) -> Model:
    """The model of a run or an export."""
    folder = Path(source)
    if (folder / "recipe.yaml").is_file() or folder.suffix == ".safetensors":
        trained = export.read(folder)
        known, names, network = export.config(trained)["pretrained_cfg"], trained.names, trained.network
        flip = trained.stage.eval_flip
    elif (folder / "config.json").is_file():
        try:
            network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{source}: timm cannot load it ({str(error).partition(chr(10))[0]:.200})") from error
        known, names, flip = network.pretrained_cfg, weights.class_names(folder), False
    else:
        raise UserError(f"{source}: neither a run's folder nor an export with --formats=timm (no config.json)")
    options = timm.data.resolve_data_config(pretrained_cfg=known)
    names = names or tuple(map(str, range(network.num_classes)))
    return Model(network, timm.data.create_transform(**options, is_training=False), names, flip)


def _read(files, transform) -> tuple[Tensor, list[str]]:
    """The network's inputs, and for each "" or why the file cannot be read, which then is a black image."""
    pictures, reasons = [], []
    for file in files:
        try:
            picture, reason = read_image(file), ""
        except UserError as error:
            picture, reason = Image.new("RGB", (1, 1)), str(error)
        pictures.append(transform(picture))
        reasons.append(reason)
    return torch.stack(pictures), reasons


@torch.inference_mode()
def predict(model: Model, files: list[Path], *, batch: int, device: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Probabilities float64 (files, classes), features float32 (files, channels), and {number of a file: why it cannot
    be read}, whose rows are of no use."""
    network, found, faults = model.network.to(device), [], {}
    workers = 0 if len(files) <= batch else usable_cores()
    read = functools.partial(_read, transform=model.transform)
    for inputs, reasons in DataLoader(files, batch, num_workers=workers, collate_fn=read):
        faults |= {batch * len(found) + place: why for place, why in enumerate(reasons) if why}
        found.append(_outputs(network, inputs.to(device), flip=model.flip))
    probabilities, features = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return probabilities, features, faults


def _outputs(network, inputs: Tensor, *, flip: bool) -> tuple[Tensor, Tensor]:
    maps = network.forward_features(inputs)
    logits, features = network.forward_head(maps), network.forward_head(maps, pre_logits=True)
    if flip:
        logits = (logits + network(inputs.flip(3))) / 2
    return logits.double().softmax(1), features


def rows_of(files, labels, names, probabilities: np.ndarray, *, top: int, every: bool) -> list[dict]:
    """A row for each file, in the order of its columns."""
    rows = []
    for file, label, shares in zip(files, labels, probabilities, strict=True):
        row = {"file": str(file)} | ({"label": label} if any(labels) else {})
        for place, number in enumerate(np.argsort(-shares, kind="stable")[:top], start=1):
            suffix = f"_{place}" if place > 1 else ""
            row |= {f"class{suffix}": names[number], f"probability{suffix}": round(float(shares[number]), 6)}
        if every:
            row |= {f"p({name})": round(float(share), 6) for name, share in zip(names, shares, strict=True)}
        rows.append(row)
    return rows


def write(path: Path, rows: list[dict], kind: str) -> None:
    """As `kind` says, .csv or .json."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == ".json":
            json.dump(rows, file, indent=1, ensure_ascii=False)
            return
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        table.writeheader()
        table.writerows(rows)


def draw_mistakes(path: Path, mistakes: list[tuple[Path, dict]]) -> None:
    """A contact sheet of the surest of these (file, row): label, what was said instead, how surely."""
    panels = []
    for file, row in sorted(mistakes, key=lambda one: -one[1]["probability"])[:SHOWN]:
        picture = read_image(file)
        picture.thumbnail((224, 224))
        said = f"{row['label']}\nnot {row['class']} ({row['probability']:.0%})\n{file.name}"
        panels.append(Panel(np.asarray(picture), below=said))
    panels += [Panel(None)] * (-len(panels) % ACROSS or ACROSS * (not panels))
    with writing(path):
        sheet([panels[k : k + ACROSS] for k in range(0, len(panels), ACROSS)]).savefig(path, dpi=100)


if __name__ == "__main__":
    main()
