"""What training sees: a contact sheet of images of a .beton under a recipe's augmentation.

    python -m ffcv_ops.preview data/photos_train.beton --cfg recipes/demo.yaml --out preview.png
    python -m ffcv_ops.preview photo.jpg --cfg recipes/vit_s_400ep.yaml --out preview.png
    python -m ffcv_ops.preview photo.jpg --cfg recipes/in21k_s_90ep.yaml --all-policies --out policies.png

A row for each image, or for each policy on the first one: the stored image, then one draw after another, each with the
operations that made it.
"""

import argparse
import io
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from ffcv_ops import crops, decoders, draws, erasing, operations, policies, randaugment
from ffcv_ops.errors import BadInput, exits_cleanly
from ffcv_ops.fields import column, describe
from ffcv_ops.loader import plan_of

matplotlib.use("Agg")

JITTER = 0.3  # of 3-Augment in the paper
POLICIES = {  # what --all-policies shows: changes to a plan without augmentation
    "none": {},
    "colour jitter": {"jitter": JITTER},
    "3-Augment\nand colour jitter": {"augment": policies.THREE, "jitter": JITTER},
    "RandAugment": {"augment": policies.RAND},
    "AutoAugment,\noriginal": {"augment": policies.AUTO_ORIGINAL},
    "AutoAugment, v0": {"augment": policies.AUTO_V0},
    "TrivialAugment": {"augment": policies.TRIVIAL},
    "erasing, const": {"erase": 1.0, "erase_mode": erasing.CONST},
    "erasing, rand": {"erase": 1.0, "erase_mode": erasing.RAND},
    "erasing, pixel": {"erase": 1.0, "erase_mode": erasing.PIXEL},
}


@exits_cleanly
def main(argv=None) -> None:
    from training import recipe  # this one module is a command line, and those may look upwards

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a .beton file, or one image file")
    parser.add_argument("--cfg", required=True, help="the recipe whose first stage is shown")
    parser.add_argument("--out", default="preview.png", help="the picture to write")
    parser.add_argument("--all-policies", action="store_true", help="every policy on the first image, with equal crops")
    parser.add_argument("--images", type=int, default=4, help="rows")
    parser.add_argument("--draws", type=int, default=7, help="columns besides the stored image")
    options = parser.parse_args(argv)
    run = recipe.load(options.cfg)
    stage = run.stages[0]
    images, plan = stored_images(Path(options.source), options.images), plan_of(stage)
    if options.all_policies:
        plain = plan._replace(augment=policies.NONE, jitter=0.0, erase=0.0)
        plans = {name: plain._replace(**changes) for name, changes in POLICIES.items()}
        rows = [Row(name, images[0], plan, range(options.draws)) for name, plan in plans.items()]
        said = f"{len(rows)} policies"
    else:
        number = len(images)
        rows = [Row("stored", image, plan, range(k, options.draws * number, number)) for k, image in enumerate(images)]
        said = f"{number} images"
    sheet(rows, stage.resolution, seed=run.seed).savefig(options.out, dpi=100)
    print(f"{options.out}: {said}, {options.draws} draws each, stage {stage.name} of {options.cfg}")


def stored_images(path: Path, number: int) -> list[np.ndarray]:
    """Up to `number` images, evenly spread over a .beton, or the one image of another file; uint8 RGB arrays."""
    if path.suffix != ".beton":
        try:
            return [np.asarray(Image.open(path).convert("RGB"))]
        except (OSError, UnidentifiedImageError) as error:
            raise BadInput(f"{path}: neither a .beton nor an image that can be read ({error})") from error
    from ffcv.reader import Reader

    samples = describe(path).samples
    reader, data = Reader(str(path)), np.memmap(path, np.uint8, mode="r")
    image = column(reader, "image")
    chosen = np.linspace(0, samples - 1, min(number, samples)).astype(int)
    return [_stored(image[index], data) for index in chosen]


def _stored(entry: np.void, data: np.ndarray) -> np.ndarray:
    height, width, start = int(entry["height"]), int(entry["width"]), int(entry["data_ptr"])
    if entry["mode"] == 1:
        return np.array(data[start : start + 3 * height * width]).reshape(height, width, 3)
    return np.asarray(Image.open(io.BytesIO(data[start:].tobytes())).convert("RGB"))


def words(plan: decoders.Plan, height: int, width: int, size: int, *, seed: int, draw: int) -> str:
    """What happens to an image of this size at this draw, in a few words."""
    view = crops.locate(plan.crop, height, width, size, plan.scale_low, plan.scale_high, plan.ratio, seed, draw)
    said = [f"{view.box_width}x{view.box_height}"] if plan.crop == crops.RRC else []
    if draws.uniform(seed, draw, draws.FLIP) < plan.flip:
        said.append("flip")
    if plan.augment == policies.THREE:
        op = policies.three_choice(plan.three_ops, seed, draw)
        names = {number: name for name, number in policies.THREE_OPS.items()}
        said.append(f"blur {policies.three_sigma(seed, draw):.1f}" if op == policies.BLUR else names[op])
    for layer in range(policies.layers(plan.augment, _strength(plan))):
        op, value = policies.choose(plan.augment, _strength(plan), layer, size, size, seed, draw)
        if op != operations.IDENTITY:
            bare = op in (operations.AUTOCONTRAST, operations.EQUALIZE, operations.INVERT)
            said.append(operations.NAMES[op] + ("" if bare else f" {value:.3g}"))
    if plan.jitter:
        factors = (policies.jitter_factor(plan.jitter, which, seed, draw) for which in range(3))
        said.append("bcs " + " ".join(f"{factor:.2f}".lstrip("0") for factor in factors))
    return "\n".join(said)


def _strength(plan: decoders.Plan) -> randaugment.Strength:
    return randaugment.Strength(*(getattr(plan, f"rand_{name}") for name in randaugment.Strength._fields))


class Row(NamedTuple):
    """A row of the sheet: its title, an image (uint8 [height, width, 3]), what is done to it, at which draws."""

    title: str
    image: np.ndarray
    plan: decoders.Plan
    draws: range


def sheet(rows: list[Row], size: int, *, seed: int) -> Figure:
    """The contact sheet. bcs: factors of brightness, contrast and saturation."""
    columns = len(rows[0].draws) + 1
    figure = Figure(figsize=(1.65 * columns, 2.35 * len(rows)), layout="constrained")
    for (first, *others), row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        height, width, _ = row.image.shape
        first.imshow(row.image)
        first.set_title(f"{row.title}\n{width}x{height}", fontsize=8)
        for panel, draw in zip(others, row.draws, strict=True):
            panel.imshow(decoders.show(row.image, plan=row.plan, resolution=size, seed=seed, draw=draw))
            panel.set_title(words(row.plan, height, width, size, seed=seed, draw=draw), fontsize=8)
        for panel in (first, *others):
            panel.set_axis_off()
    return figure


if __name__ == "__main__":
    main()
