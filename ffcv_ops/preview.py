"""What training sees: a contact sheet of images of a .beton under a recipe's augmentation.

    python -m ffcv_ops.preview data/photos_train.beton --cfg recipes/demo.yaml --out preview.png
    python -m ffcv_ops.preview photo.jpg --cfg recipes/vit_s_400ep.yaml --out preview.png

A row for each image: the stored image, then one draw after another, each with the operations that made it.
"""

import argparse
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from ffcv_ops import crops, decoders, draws, policies
from ffcv_ops.errors import BadInput, exits_cleanly
from ffcv_ops.fields import column, describe
from ffcv_ops.loader import plan_of

matplotlib.use("Agg")


@exits_cleanly
def main(argv=None) -> None:
    from training import recipe  # this one module is a command line, and those may look upwards

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a .beton file, or one image file")
    parser.add_argument("--cfg", required=True, help="the recipe whose first stage is shown")
    parser.add_argument("--out", default="preview.png", help="the picture to write")
    parser.add_argument("--images", type=int, default=4, help="rows")
    parser.add_argument("--draws", type=int, default=7, help="columns besides the stored image")
    options = parser.parse_args(argv)
    run = recipe.load(options.cfg)
    stage = run.stages[0]
    images = stored_images(Path(options.source), options.images)
    figure = sheet(images, plan_of(stage), stage.resolution, seed=run.seed, draws_shown=options.draws)
    figure.savefig(options.out, dpi=100)
    print(f"{options.out}: {len(images)} images, {options.draws} draws each, stage {stage.name} of {options.cfg}")


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
    if plan.jitter:
        factors = (policies.jitter_factor(plan.jitter, which, seed, draw) for which in range(3))
        said.append("bcs " + " ".join(f"{factor:.2f}".lstrip("0") for factor in factors))
    return "\n".join(said)


def sheet(images: list[np.ndarray], plan: decoders.Plan, size: int, *, seed: int, draws_shown: int) -> Figure:
    """The contact sheet. bcs: factors of brightness, contrast and saturation."""
    rows, columns = len(images), draws_shown + 1
    figure = Figure(figsize=(1.65 * columns, 2.35 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for number, image in enumerate(images):
        height, width, _ = image.shape
        panels[number, 0].imshow(image)
        panels[number, 0].set_title(f"stored\n{width}x{height}", fontsize=8)
        for k in range(draws_shown):
            draw = k * rows + number
            shown = decoders.show(image, plan=plan, resolution=size, seed=seed, draw=draw)
            panels[number, k + 1].imshow(shown)
            panels[number, k + 1].set_title(words(plan, height, width, size, seed=seed, draw=draw), fontsize=8)
    for panel in panels.flat:
        panel.set_axis_off()
    return figure


if __name__ == "__main__":
    main()
