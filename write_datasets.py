"""Images -> .beton files.

    python write_datasets.py                                                       # the bundled photographs
    python write_datasets.py --data.source=/path/pets                              # a folder with <class>/<images>
    python write_datasets.py --data.source=/path/imagenet --data.out=data/imagenet # a folder with train/ and val/
    python write_datasets.py --data.source=/path/imagenet --data.shards=auto         # files of about 1 GB
    python write_datasets.py --data.source=/path/imagenet --image.levels=500,256,160 # each image at three sizes

For each split: <out>_<split>.beton, its description .json, checksums .xxh64 and the list .files.txt. docs/data.md
describes them. The same command continues a conversion that was stopped.
"""

import dataclasses
import functools
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Literal

from config import command_line
from config.options import build, option, select, to_yaml
from config.recipe import BASE_RECIPE, load_recipe
from conversion.class_sizes import class_sizes
from conversion.convert import WriteOptions, convert
from conversion.encode import ImageConfig, encode_item
from conversion.estimate import EstimateConfig, estimate
from conversion.replace import others, remove
from conversion.resume import clear_marker, status_text
from conversion.shards import auto_shards, shards_of
from conversion.sources import Source, open_source, output_name
from conversion.split import divided
from ffcv_ops import host
from ffcv_ops.errors import UserError, exits_cleanly
from ffcv_ops.jpeg import native, turbojpeg

FOLDER_PAGE_SIZE = 2**23  # FFCV's default, and the most that one stored image may take
PHOTOS_PAGE_SIZE = 2**21  # the least, for a file of a few MB


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is converted, and how."""

    source: str = option(
        "photos: the bundled photographs; or a folder with <class>/, or with train/<class>/ and perhaps val/ and test/,"
        " or a zip or tar of it; a .csv, .tsv or .jsonl with labels; ILSVRC's tar files; class tars; WebDataset shards;"
        " Parquet files, or what datasets' save_to_disk wrote (a folder, or a pattern with *);"
        " torchvision:NAME[,argument=value]; module:name. docs/sources.md has an example of each",
        default="photos",
    )
    classes: str = option(
        "which class has which number. auto: the sorted names, or what the source says; sorted or numeric, where names"
        " are numbers; imagenet1k, imagenet12k, imagenet21k (fall11), imagenet21k_goog, winter21; or a file with a"
        " class a line",
        default="auto",
    )
    label: str = option(
        "where it is: a column of a list or of Parquet; in WebDataset a field of .json, or .txt for the number in that"
        " member",
        default="auto",
    )
    images: str | None = option("folder of the images of a list; none: found beside it", default=None)
    val_share: float | Literal["auto"] | None = option(
        "share of each class's images that becomes val, where the source has none; auto: 0.1 where it has no train"
        " either",
        above=0,
        below=1,
        default="auto",
    )
    seed: int = option("another one makes another val_share, fold and per_class", low=0, high=2**32 - 1, default=0)
    folds: int | None = option("so many equal parts, of which one is val", low=2, high=1000, default=None)
    fold: int | None = option("which of them is val, from 0", low=0, default=None)
    per_class: int | None = option("train has at most so many images of each class", low=1, default=None)
    out: str = option(
        "files are named <out>_train.beton ...; auto: data/photos, data/<folder> or data/<folder>_fold0",
        default="auto",
        changes="records",
    )
    replace: bool = option(
        "files of another source or division may be replaced, and those of splits that are no more removed",
        default=False,
        changes="records",
    )
    on_error: Literal["stop", "skip"] = option("what an image that cannot be stored does", default="stop")
    shards: int | Literal["auto"] = option(
        "files of each split; auto: of about 1 GB each", low=1, high=100_000, default=1
    )
    max_skipped: float = option(
        "share of a split's images that on_error=skip may leave out; ten always",
        low=0,
        high=1,
        default=0.01,
        changes="records",
    )
    workers: int | Literal["auto"] = option(
        "processes; auto: one per core", low=1, high=1024, default="auto", changes="speed"
    )


OPTIONS = (
    ("--estimate", {"action": "store_true", "help": "measure a sample, predict size and speed, write nothing"}),
    ("--verify", {"metavar": "FILE", "help": "check a .beton, or all shards of a pattern, and write nothing"}),
)


@exits_cleanly
def main(argv=None):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends a conversion as Ctrl-C does
    sections = {"data": DataConfig, "image": ImageConfig, "estimate": EstimateConfig}
    flags, given = command_line.parse(__doc__, sections, {}, OPTIONS, argv)
    if (of_estimate := select(given, "estimate")) and not flags.estimate:
        raise UserError(f"--estimate.{next(iter(of_estimate))} belongs to --estimate")
    turbojpeg.load()
    native.library()  # or each worker would build it
    data = build(DataConfig, select(given, "data"), "--data.")
    workers = host.usable_cores() if data.workers == "auto" else data.workers
    if flags.verify:
        from tools.verify import verify  # decodes as the loader does, which takes seconds to import

        raise SystemExit(1 if verify(flags.verify, workers=workers) else 0)
    image = image_keys(select(given, "image"))
    if data.source == "photos":
        from conversion.photos import photographs  # its draws are compiled by Numba, which takes a second to import

        if image.levels or flags.estimate:
            what = "--estimate" if flags.estimate else "--image.levels"
            raise UserError(f"{what}: the bundled photographs keep their size; it needs a --data.source")
        for name in ("classes", "label", "images"):
            if getattr(data, name) != getattr(DataConfig, name):
                raise UserError(f"--data.{name}: the bundled photographs have theirs; it needs a --data.source")
        source, page_size = photographs(), PHOTOS_PAGE_SIZE
        image = dataclasses.replace(image, max_side=None, min_side=None)
    else:
        place, classes = os.path.expanduser(data.source), os.path.expanduser(data.classes)
        images = data.images and os.path.expanduser(data.images)
        source = open_source(place, classes=classes, label=data.label, images=images, workers=workers)
        page_size = FOLDER_PAGE_SIZE
    division = {name: getattr(data, name) for name in ("val_share", "seed", "folds", "fold", "per_class")}
    source = divided(source._replace(made=made_of(data)), **division)
    out = os.path.expanduser(data.out)
    if data.out == "auto":
        out = f"data/{output_name(data.source)}" + (f"_fold{data.fold}" if data.folds else "")
    if flags.estimate:
        config = build(EstimateConfig, select(given, "estimate"), "--estimate.")
        stage = load_recipe(BASE_RECIPE).stages[0]
        print(estimate(source, image, stage, config, out=Path(out), overrides=given, page_size=page_size))
        return
    remaining = others(out, source, data.replace)
    options = WriteOptions(page_size, data.on_error, data.max_skipped, workers)
    write_splits(source, out, image, options, data.shards)
    for line in class_sizes(source):
        print(line, file=sys.stderr)
    for file in remaining:
        remove(file)
        print(f"{file} is removed: it belonged to what was replaced")
    if list(source.splits) == ["train"] and data.val_share == "auto":
        print(f"{data.source} has no val; --data.val_share=0.1 makes a tenth of each class one")


def made_of(data: DataConfig) -> dict:
    """The keys that say what is converted, where they are not the defaults; the source as a path, if it is one."""
    place = os.path.expanduser(data.source)
    made = {"source": os.path.abspath(place) if os.path.exists(place) or "*" in place else place}
    return made | {
        name: value for name in ("classes", "label", "images") if (value := getattr(data, name)) not in ("auto", None)
    }


def write_splits(source: Source, out: str, image: ImageConfig, options: WriteOptions, shards: int | Literal["auto"]):
    """Writes each split to <out>_<split>.beton, and prints a line for each."""
    paths = {name: Path(f"{out}_{name}.beton") for name in source.splits}
    for name, path in paths.items():
        items = source.splits[name].items
        count = shards
        if count == "auto":
            count = auto_shards(items, functools.partial(encode_item, read=source.read, image=image))
        try:
            line = convert(source, name, path, image, dataclasses.replace(options, shards=count), last=False)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(status_text(path, shards_of(path, len(items), count))) from None
        print(line, flush=True)
    for path in paths.values():
        clear_marker(path)  # only now, so that a stop in val does not start train over


def image_keys(given) -> ImageConfig:
    """The keys of --image; with levels, the first of them is max_side."""
    image = build(ImageConfig, given, "--image.")
    if not image.levels:
        return image
    if "max_side" in given and image.max_side != image.levels[0]:
        raise UserError(
            f"--image.max_side is {to_yaml(image.max_side)}, --image.levels begins with {image.levels[0]};"
            " give levels alone"
        )
    if any(smaller >= larger for larger, smaller in itertools.pairwise(image.levels)):
        shown = ",".join(map(str, image.levels))
        raise UserError(f"--image.levels is {shown}; each level must be smaller than the one before")
    return dataclasses.replace(image, max_side=image.levels[0])


if __name__ == "__main__":
    main()
