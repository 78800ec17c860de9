"""Images -> .beton files.

    python write_datasets.py                                                       # the bundled photographs
    python write_datasets.py --data.source=/path/imagenet --data.out=data/imagenet # a folder with train/ and val/
    python write_datasets.py --data.source=/path/imagenet --data.shards=auto         # files of about 1 GB
    python write_datasets.py --data.source=/path/imagenet --image.levels=500,256,160 # each image at three sizes

For each split: <out>_<split>.beton, its description .json, checksums .xxh64 and the list .files.txt. docs/data.md tells
what they hold. The same command goes on with a conversion that was stopped.
"""

import dataclasses
import functools
import io
import itertools
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from config import command_line
from config.options import build, option, select, to_yaml
from config.recipe import BASE_RECIPE, load_recipe
from conversion import beton, journal, jpeg
from conversion.convert import convert, forget
from conversion.encode import encode_item
from conversion.plan import PlanKeys, plan
from conversion.shards import Part, automatic, beside, parts_of
from conversion.sources import open_source, output_name
from conversion.split import with_val
from conversion.unfinished import noted
from ffcv_ops import host
from ffcv_ops.errors import UserError, exits_cleanly
from ffcv_ops.jpeg import native

FOLDER_PAGE_SIZE = 2**23  # FFCV's default, and the most that one stored image may take
PHOTOS_PAGE_SIZE = 2**21  # the least, for a file of a few MB


@dataclasses.dataclass(frozen=True)
class DataKeys:
    """What is converted, and how."""

    source: str = option(
        "photos: the bundled photographs; or a folder with train/<class>/ and perhaps val/; a folder with ILSVRC's tar"
        " files; a tar or a folder of class tars; WebDataset shards or Parquet files (a folder, or a pattern with *);"
        " torchvision:NAME[,argument=value]. docs/sources.md has an example of each",
        default="photos",
    )
    classes: str = option(
        "which class has which number. auto: the sorted names, or what the source says; imagenet1k, imagenet12k,"
        " imagenet21k (fall11), imagenet21k_goog, winter21; or a file with a class a line",
        default="auto",
    )
    label: str = option("where Parquet (a column) and WebDataset (a field of .json) keep it", default="auto")
    val_share: float | None = option(
        "share of each class's images that becomes val, where the source has none", above=0, below=1, default=None
    )
    out: str = option(
        "files are named <out>_train.beton ...; auto: data/photos or data/<folder>", default="auto", changes="records"
    )
    on_error: Literal["stop", "skip"] = option("what an image that cannot be stored does", default="stop")
    shards: int | Literal["auto"] = option(
        "files of each split; auto: of about 1 GB each", low=1, high=100_000, default=1
    )
    workers: int | Literal["auto"] = option(
        "processes; auto: one per core", low=1, high=1024, default="auto", changes="speed"
    )


@dataclasses.dataclass(frozen=True)
class ImageKeys:
    """How an image is stored; photos keep their size."""

    max_side: int | None = option("longer side at most this (pixels)", low=1, high=65500, default=500)
    levels: tuple[int, ...] | None = option(
        "a pyramid: each image at several sizes, limits as max_side is: 500,256,160", low=1, high=65500, default=None
    )
    min_side: int | None = option("shorter side at most this (pixels)", low=1, high=65500, default=None)
    quality: int = option("of JPEG", low=1, high=100, default=90)
    passthrough: bool = option("a JPEG that is within the limits is stored as it is", default=True)
    mode: Literal["jpg", "raw"] = option("JPEG, or RGB bytes", default="jpg")


OPTIONS = (
    ("--plan", {"action": "store_true", "help": "measure a sample, predict size and speed, write nothing"}),
    ("--verify", {"metavar": "FILE", "help": "check a .beton, or all shards of a pattern, and write nothing"}),
)


@exits_cleanly
def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends a conversion as Ctrl-C does
    sections = {"data": DataKeys, "image": ImageKeys, "plan": PlanKeys}
    flags, given = command_line.parse(__doc__, sections, {}, OPTIONS)
    jpeg.load()
    native.library()  # or each worker would build it
    data = build(DataKeys, select(given, "data"), "--data.")
    workers = host.usable_cores() if data.workers == "auto" else data.workers
    if flags.verify:
        from tools.verify import verify  # decodes as the loader does, which takes seconds to import

        raise SystemExit(1 if verify(flags.verify, workers=workers) else 0)
    image = image_keys(select(given, "image"))
    if data.source == "photos":
        from conversion.photos import photographs  # its draws are compiled by Numba, which takes a second to import

        if image.levels or flags.plan:
            what = "--plan" if flags.plan else "--image.levels"
            raise UserError(f"{what}: the bundled photographs keep their size; it needs a --data.source")
        for name in ("classes", "label"):
            if getattr(data, name) != "auto":
                raise UserError(f"--data.{name}: the bundled photographs have theirs; it needs a --data.source")
        source, page_size = photographs(), PHOTOS_PAGE_SIZE
        image = dataclasses.replace(image, max_side=None, min_side=None)
    else:
        source = open_source(data.source, classes=data.classes, label=data.label, workers=workers)
        page_size = FOLDER_PAGE_SIZE
    if data.val_share is not None:
        source = with_val(source, data.val_share)
    encode = functools.partial(encode_item, **dataclasses.asdict(image))
    out = f"data/{output_name(data.source)}" if data.out == "auto" else data.out
    if flags.plan:
        wanted = build(PlanKeys, select(given, "plan"), "--plan.")
        stage = load_recipe(BASE_RECIPE).stages[0]
        print(plan(source, image, stage, wanted, out=Path(out), given=given, page_size=page_size))
        return
    options = {"on_error": data.on_error, "workers": workers, "page_size": page_size}
    paths = {name: Path(f"{out}_{name}.beton") for name in source.splits}
    for name, split in source.splits.items():
        shards = data.shards
        if shards == "auto":
            shards = automatic(split.items, functools.partial(encode, read=source.read))
        path, images = paths[name], beton.level_fields(image.levels or ())
        try:
            print(convert(source, name, path, encode, **options, images=images, shards=shards, last=False), flush=True)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(kept(path, parts_of(path, len(split.items), shards))) from None
    for path in paths.values():
        forget(path)
    if list(source.splits) == ["train"]:
        print(f"{data.source} has no val; --data.val_share=0.1 makes a tenth of each class one")


def kept(path: Path, parts: Sequence[Part]) -> str:
    """What a conversion to `path` that was stopped leaves for the next start, in words."""
    marker, done = beside(path, ".unfinished"), 0
    if marker.exists():
        with marker.open("rb") as file:
            read_back = noted(file)
        done = sum(len(part.items) if part.shard in read_back else recorded(part) for part in parts)
    if not done:
        return f"nothing of {path} is finished yet, the same command begins it anew"
    every = sum(len(part.items) for part in parts)
    return f"{done:,} of {every:,} images of {path} are finished, the same command goes on behind them"


def recorded(part: Part) -> int:
    """How many of the part's images the journal says are finished."""
    file = beside(part.path, ".journal.partial")
    records = journal.records(io.BytesIO(file.read_bytes())) if file.exists() else ()
    return max((int(record["done"]) for record in records), default=0)


def image_keys(given) -> ImageKeys:
    """The keys of --image; with levels, the first of them is max_side."""
    image = build(ImageKeys, given, "--image.")
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
