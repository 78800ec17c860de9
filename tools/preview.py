"""What training sees: a contact sheet of images of a .beton under a recipe's augmentation.

    python -m tools.preview data/photos_train.beton --cfg recipes/demo.yaml --out preview.png
    python -m tools.preview photo.jpg --cfg recipes/vit_s_400ep.yaml --stage pretrain_224
    python -m tools.preview photo.jpg --cfg recipes/vit_s_400ep.yaml --compare --out compare.png
    python -m tools.preview photo.jpg --cfg recipes/in21k_s_90ep.yaml --all-policies --out policies.png

A row for each image, the stored one first with its class, then draws of each stage; under each picture the operations
that made it (bcs: factors of brightness, contrast, saturation). --compare: ours, the same by Pillow, torchvision and
timm, and the difference times AMPLIFIED, with its largest and mean value. --all-policies: a row for each policy on one
image.
"""

import argparse
import io
import os
from pathlib import Path
from typing import NamedTuple

from config.parser import Parser
from config.recipe import load_recipe
from ffcv_ops.errors import UserError, exits_cleanly, writing

MOST = 100  # rows, and draws of a stage; a sheet of more is larger than Matplotlib draws


def parse(argv=None) -> argparse.Namespace:
    """The command line, checked."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="a .beton file, the pattern of shards, or one image file")
    parser.add_argument("--cfg", required=True, help="the recipe")
    parser.add_argument("--out", default="preview.png", help="the picture to write")
    parser.add_argument("--stage", help="this stage alone")
    parser.add_argument("--augment", metavar="TEXT", help="instead of the recipe's stage.augment")
    parser.add_argument("--compare", action="store_true", help="beside Pillow's, torchvision's and timm's result")
    parser.add_argument("--all-policies", action="store_true", help="every policy on the first image, with equal crops")
    parser.add_argument("--images", type=int, default=8, help="rows")
    parser.add_argument("--draws", type=int, help="columns for each stage (6 shared by the stages, at least 2)")
    options = parser.parse_args(argv)
    for name, value in (("images", options.images), ("draws", options.draws)):
        if value is not None and not 1 <= value <= MOST:
            raise UserError(f"--{name} {value}: it must be 1 to {MOST}")
    return options


if __name__ == "__main__":  # --help and mistakes are answered here: the imports below take seconds
    exits_cleanly(parse)()

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from config import loading
from conversion.rgb import read_image
from ffcv_ops import rng
from ffcv_ops.augment import chain, load
from ffcv_ops.kernels import crops
from ffcv_ops.loader import plan_of
from ffcv_ops.rng import RandomKey
from ffcv_ops.stock import IntField
from ffcv_ops.storage.index import column, open_index
from ffcv_ops.storage.reading import Files
from ffcv_ops.stored_images import RAW
from ffcv_ops.transform import TransformParams, transform_image

matplotlib.use("Agg")

AMPLIFIED = 32  # a difference of 8 of 255 is white


@exits_cleanly
def main(argv=None) -> None:
    options = parse(argv)
    known = Figure().canvas.get_supported_filetypes()
    if Path(options.out).suffix[1:] not in known:
        raise UserError(f"--out {options.out}: its ending must be one of {', '.join(sorted(known))}")
    run = load_recipe(options.cfg, {} if options.augment is None else {"stage.augment": options.augment})
    stages = [stage for stage in run.stages if options.stage in (None, stage.name)]
    if not stages:
        names = ", ".join(stage.name for stage in run.stages)
        raise UserError(f"--stage {options.stage}: the stages of {options.cfg} are {names}")
    images = stored_images(Path(options.source), options.images)
    number = options.draws or max(6 // len(stages), 2)
    if options.all_policies:
        rows = policy_rows(images[0].picture, stages[0], run.seed, number)
        said = f"{len(rows)} policies, {number} draws each, stage {stages[0].name}"
    else:
        rows, columns = [], [stage for stage in stages for _ in range(number)]
        for place, image in enumerate(images):
            shown = [(stage, place + column * len(images)) for column, stage in enumerate(columns)]
            rows += compared(image, shown, run.seed) if options.compare else [row_of(image, shown, run.seed)]
        names = ", ".join(stage.name for stage in stages)
        said = f"{len(images)} images, {number} draws each, stages {names}"
    with writing(options.out):
        sheet(rows).savefig(options.out, dpi=100)
    print(f"{options.out}: {said} of {options.cfg}")
    for stage in stages:
        print(f"{stage.name}: {loading.describe(stage)}")


class Panel(NamedTuple):
    """One picture, uint8 [height, width, 3] or None for an empty place, and the words above and below it."""

    picture: np.ndarray | None
    above: str = ""
    below: str = ""


def stored_panel(image: np.ndarray, class_name: str = "") -> Panel:
    """An image as it is stored, uint8 RGB."""
    height, width, _ = image.shape
    return Panel(image, "stored", "\n".join(filter(None, [class_name[:24], f"{width}x{height}"])))


def row_of(stored: Panel, shown, seed: int) -> list[Panel]:
    """The stored image and one panel for each (stage, draw) of `shown`."""
    panels = [stored]
    for stage, draw in shown:
        params, loaded = plan_of(**loading.train_options(stage)), load.from_text(loading.chain_of(stage))
        panels.append(_panel(stored.picture, stage, params, loaded, RandomKey(seed, draw)))
    return panels


def compared(stored: Panel, shown, seed: int) -> list[list[Panel]]:
    """Three rows: ours, the reference, the difference; without the augmentations that declare no reference."""
    from tools import reference  # imports torch and timm

    rows, image = [[stored], [Panel(None)], [Panel(None)]], stored.picture
    for stage, draw in shown:
        loaded = [one for one in load.from_text(loading.chain_of(stage)) if one.augmentation.reference]
        params = plan_of(**loading.train_options(stage))
        augmented = load.compiled(loaded, params.interpolation)
        params = params._replace(min_oversampling=0.0, chain=augmented)  # decoding less has no other implementation
        key = RandomKey(seed, draw)
        ours = _panel(image, stage, params, loaded, key)
        theirs = reference.show(image, params, loaded, resolution=stage.resolution, key=key)
        apart = np.abs(ours.picture.astype(int) - theirs)
        amplified = np.minimum(AMPLIFIED * apart, 255).astype(np.uint8)
        rows[0].append(ours)
        rows[1].append(Panel(theirs, below="Pillow, torchvision, timm"))
        rows[2].append(Panel(amplified, below=f"difference x {AMPLIFIED}\nmax {apart.max()}, mean {apart.mean():.3f}"))
    return rows


def policy_rows(image: np.ndarray, stage, seed: int, number: int) -> list[list[Panel]]:
    """A row for each example of a declared augmentation, with the stage's crops."""
    examples = [text for augmentation in chain.declared().values() for text in augmentation.examples]
    rows = []
    for text in (chain.NONE, *examples):
        loaded, params = load.from_text(text), plan_of(**loading.train_options(stage))
        params = params._replace(chain=load.compiled(loaded, params.interpolation))
        panels = [_panel(image, stage, params, loaded, RandomKey(seed, draw)) for draw in range(number)]
        rows.append([Panel(image, below=text.replace(" | ", "\n| ")), *panels])
    return rows


def _panel(image, stage, params, loaded, key):
    size = stage.resolution
    shown = transform_image(image, params, resolution=size, key=key)
    return Panel(shown, f"{stage.name}, {size} px", words(params, loaded, image.shape[:2], size, key=key))


def stored_images(path: Path, number: int) -> list[Panel]:
    """Up to `number` images, evenly spread over a .beton or the shards of a pattern, or the one image of another
    file."""
    if path.suffix != ".beton" and "*" not in path.name:
        try:
            return [stored_panel(np.asarray(read_image(path)))]
        except UserError as error:
            raise UserError(f"{path}: neither a .beton nor an image that can be read: it {error}") from error
    known = open_index(path)
    samples = len(known.metadata)
    places = np.linspace(0, samples - 1, min(number, samples)).astype(int)
    chosen = column(known, "image")[places]
    sizes = known.sizes[np.searchsorted(known.places, chosen["data_ptr"])].tolist()
    with Files(known).schedule_epoch([]) as files:
        spans = zip(*files.locate(chosen["data_ptr"]), sizes, strict=True)
        stored = [os.pread(file, size, int(place)) for file, place, size in spans]
    names = _class_names(known, places)
    return [stored_panel(_pixels(*one), name) for *one, name in zip(chosen, stored, names, strict=True)]


def _class_names(known, places):
    """Of these samples; "" where there are no classes."""
    if not isinstance(known.handlers.get("label"), IntField):
        return [""] * len(places)
    names = dict(enumerate(known.class_names or ()))
    return [names.get(label, f"class {label}") for label in column(known, "label")[places].tolist()]


def _pixels(entry: np.void, data: bytes) -> np.ndarray:
    if entry["mode"] == RAW:
        return np.frombuffer(data, np.uint8).reshape(entry["height"], entry["width"], 3)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def words(params: TransformParams, loaded, stored: tuple[int, int], size: int, *, key: RandomKey) -> str:
    """What happens to an image of these sides, (height, width), under this key, in a few words. loaded: the
    augmentations of `params`, as `load.from_text` gives them."""
    view = crops.locate(params.crop, *stored, size, params.scale_low, params.scale_high, params.ratio, key)
    said = [f"{view.box_width}x{view.box_height}"] if params.crop == crops.RRC else []
    if rng.uniform(key, rng.FLIP) < params.flip:
        said.append("flip")
    return "\n".join(said + load.words(loaded, params.interpolation, size, size, key))


def sheet(rows: list[list[Panel]]) -> Figure:
    """The contact sheet; what is above a picture is said in the first row only."""
    lines = [max(panel.below.count("\n") + 1 for panel in row) for row in rows]
    heights = [1.65 + 0.16 * count for count in lines]
    figure = Figure(figsize=(1.7 * len(rows[0]), sum(heights) + 0.2), layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=heights)
    for number, (places, row) in enumerate(zip(grid, rows, strict=True)):
        for place, panel in zip(places, row, strict=True):
            place.set(xticks=[], yticks=[], anchor="N")
            place.spines[:].set_visible(False)
            if panel.picture is not None:
                place.imshow(panel.picture)
                place.set_xlabel(panel.below, fontsize=8, parse_math=False)  # names of classes are not ours
            if number == 0:
                place.set_title(panel.above, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
