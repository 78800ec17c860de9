"""What --eval-only does: weights -> top-1 and top-5 on data sets, as a table, as rows of evaluations.json, by class.

How a data set is marked follows from names:

    its classes are the model's            as in training
    its classes are some of the model's    the model chooses among these only (ImageNet-A and -R: 200 of 1,000)
    its classes are 0, 1, 2, ...           these are numbers of the model's classes (ImageNet-V2)
    its files are ILSVRC2012_val_*         and its classes ImageNet's: by ReaL's labels too, in the same pass

The model's class names are those of config.json beside the weights, or of the recipe's data, or, where neither names
them, those of the ImageNet with so many classes. ReaL (Beyer et al. 2020) lists for each image all the classes that
people saw in it; an image for which it lists none does not count. timm brings the lists.
"""

import csv
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from timm.data import RealLabelsImagenet
from torch import Tensor, nn

from config.schema import EvalConfig
from config.text import markdown_table
from ffcv_ops import order
from ffcv_ops.errors import UserError, writing
from ffcv_ops.files import write_atomically
from ffcv_ops.loader import eval_loader
from ffcv_ops.storage import sources
from ffcv_ops.storage.index import describe
from ffcv_ops.storage.info import DatasetInfo, exists
from training import micro_batch, model, out_of_memory, weights
from training.distributed.watchdog import Watchdog
from training.evaluate import Exam, Marks, sit
from training.run import Run

IMAGENET = 1000  # classes
RECORD = "evaluations.json"


class Names(NamedTuple):
    """What the model's outputs are called; `certain` is false where only their number suggests it."""

    names: tuple[str, ...] | None
    certain: bool


class Judged(NamedTuple):
    """One data set under one kind of labels: `own`, or `ReaL`; of how many of the model's classes it is."""

    data: DatasetInfo
    labels: str
    classes: int
    marks: Marks


def judge(run: Run, init: str | None, asked: EvalConfig, watch: Watchdog) -> list[dict]:
    """Evaluates the weights `init` as the last stage of the run does; prints and records. Returns the rows. All ranks
    come here; the first one writes."""
    if init is None:
        raise UserError(f"--eval-only needs --init: {weights.SOURCES}")
    recipe, stage = run.recipe, run.recipe.stages[-1]
    train, val = (
        (recipe.data.train, recipe.data.val)
        if stage.data == "main"
        else (recipe.data.finetune_train, recipe.data.finetune_val)
    )
    betons = [describe(path) for path in ([val] if asked.data == "auto" else asked.data)]
    network = load(run, weights.read(init))
    names = names_of_outputs(network.num_classes, weights.class_names(init), train, val)
    judged = [one for beton in betons for one in examine(run, network, beton, names, watch)]
    folder = _folder(init, asked.out)
    rows = [_row(run, init, one) for one in judged]
    if run.ranks.is_main:
        print(table(rows))
        if folder is not None:
            taken = {row.get("by_class") for row in others(folder, rows)}
            for row, one in zip(rows, judged, strict=True):
                row["by_class"] = _by_class(folder, one, row, taken)
            record(folder, rows)
            print(f"\n{folder / RECORD}, by class: {', '.join(row['by_class'] for row in rows)}")
    return rows


def load(run: Run, given: dict[str, Tensor]) -> nn.Module:
    """The run's network for its last stage's evaluation, with the weights `given`: as many classes as these have, and
    their position embedding resampled to the size of the images."""
    recipe, stage = run.recipe, run.recipe.stages[-1]

    def create(classes):
        return model.create(
            recipe.model.name, resolution=stage.eval_side, classes=classes, drop_path=0.0,
            layer_scale=recipe.model.layer_scale, blur_pool=recipe.model.blur_pool,
        )  # fmt: skip

    if (classes := recipe.model.classes) == "auto":
        with torch.device("meta"):
            classes = model.head_size(given, create(1))
        if classes == 0:
            raise UserError(
                f"the weights have no classifier that {recipe.model.name} knows; there is nothing to evaluate"
            )
    network = create(classes)
    model.load(network, model.grow(given, network))
    network.to(run.ranks.device).eval()
    if recipe.speed.channels_last and model.tokens(network) is None:
        network.to(memory_format=torch.channels_last)
    return network


def names_of_outputs(count: int, given: Sequence[str] | None, *files: str) -> Names:
    """The names of `count` outputs: those `given`, those of the first of the `files` that is there and names so many,
    or ImageNet's. Names that are numbers are not taken from files, see above."""
    for found in (given, *(describe(path).class_names for path in files if exists(path))):
        if found is not None and len(found) == count and (found is given or not _are_numbers(found)):
            return Names(tuple(found), True)
    synsets = weights.synsets(count)
    return Names(tuple(synsets) if synsets else None, False)


def columns(beton: DatasetInfo, names: Names, outputs: int) -> list[int] | None:
    """For each class of the data the model's output that stands for it; None where they are the same."""
    given, known = beton.class_names, names.names
    if beton.classes > (outputs if given is None else len(given)):
        raise UserError(f"{beton.path}: its labels go up to {beton.classes - 1}, beyond its or the model's classes")
    if given is None or given == known:
        return None
    place = {name: number for number, name in enumerate(known or ())}
    missing = [name for name in given if name not in place]
    if not missing:
        return [place[name] for name in given]
    if _are_numbers(given) and len(given) <= outputs and names.names is not None:
        return [int(name) for name in given]
    if not names.certain and len(given) == outputs:
        return None
    raise UserError(
        f"{beton.path}: {len(missing)} of its {len(given)} classes are none of the model's {outputs}:"
        f" {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    )


def _are_numbers(names):
    return set(names) == {str(number) for number in range(len(names))}


def real(beton: DatasetInfo) -> Tensor | None:
    """ReaL's classes of each image, int64 (images, most), filled up with -1; None where the files' names do not say
    which of ImageNet's validation images these are."""
    found = [re.search(r"ILSVRC2012_val_\d{8}", name) for name in sources.source_names(beton.path)]
    if not all(found) or len(found) != beton.samples:
        return None
    lists = RealLabelsImagenet([""] * 50_000).real_labels
    answers = [lists.get(f"{match[0]}.JPEG", ()) for match in found]
    if not any(answers):
        return None
    most = max(map(len, answers))
    return torch.tensor([[*classes, *[-1] * (most - len(classes))] for classes in answers])


def examine(run: Run, network: nn.Module, beton: DatasetInfo, names: Names, watch: Watchdog) -> list[Judged]:
    """One pass of `network` over a data set, with its own labels and, where they fit, with ReaL's."""
    stage, ranks = run.recipe.stages[-1], run.ranks
    chosen = columns(beton, names, network.num_classes)
    exams = {"own": Exam(columns=None if chosen is None else torch.tensor(chosen, device=ranks.device))}
    if chosen is None and names.names == tuple(weights.synsets(IMAGENET)) and (answers := real(beton)) is not None:
        share = order.evaluation_share(beton.samples, rank=ranks.rank, world=ranks.world)
        exams["ReaL"] = Exam(answers=answers[share].to(ranks.device))
    seen = micro_batch.for_evaluation(run.recipe.speed.micro_batch)
    batches = eval_loader(beton.path, beton.samples, stage, batch=seen, placement=run.placement)
    batches = watch.watched(batches, f"evaluating on {beton.path}")
    with out_of_memory.explained_in_evaluation(run, stage, seen):
        marks = sit(
            network, batches.epoch(0), list(exams.values()), labels=beton.classes, device=ranks.device,
            autocast=run.autocast, flip=stage.eval_flip,
        )  # fmt: skip
    classes = network.num_classes if chosen is None else len(set(chosen))
    return [Judged(beton, labels, classes, one) for labels, one in zip(exams, marks, strict=True)]


# --- what is written -----------------------------------------------------------------------------------------------


def _row(run, init, judged):
    """What evaluations.json keeps of an evaluation. top1, top5: shares; loss: nats, none for ReaL."""
    stage, result = run.recipe.stages[-1], judged.marks.result
    return {
        "weights": str(init),
        "model": run.recipe.model.name,
        "data": str(judged.data.path),
        "labels": judged.labels,
        "classes": judged.classes,
        "images": result.images,
        "resolution": stage.eval_side,
        "crop": stage.eval_crop,
        "flip": stage.eval_flip,
        "precision": str(run.precision).removeprefix("torch."),
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss if judged.labels == "own" else None,
    }


def table(rows: list[dict]) -> str:
    """A Markdown table of rows of evaluations.json."""
    lines = [("data", "labels", "classes", "images", "px", "crop", "top-1 %", "top-5 %", "loss")]
    for row in rows:
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append(
            (Path(row["data"]).stem, row["labels"], f"{row['classes']:,}", f"{row['images']:,}",
             str(row["resolution"]), f"{row['crop']:g}{' + mirror' if row['flip'] else ''}",
             f"{100 * row['top1']:.3f}", f"{100 * row['top5']:.3f}", loss)
        )  # fmt: skip
    return markdown_table(lines)


def _folder(init, out):
    """Where results go; None: nowhere."""
    if out != "auto":
        folder = Path(out)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder
    path = Path(init)
    return next((place for place in (path, path.parent) if (place / "recipe.yaml").is_file()), None)


def read(folder: Path) -> list[dict]:
    """The evaluations that a folder keeps."""
    path = folder / RECORD
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a list of evaluations ({error}); delete it") from error


def others(folder: Path, rows: list[dict]) -> list[dict]:
    """The folder's evaluations without those that `rows` replace: of the same weights, data and settings."""
    settings = ("weights", "data", "labels", "resolution", "crop", "flip", "precision")

    def same(row):
        return tuple(row.get(name) for name in settings)

    new = set(map(same, rows))
    return [row for row in read(folder) if same(row) not in new]


def record(folder: Path, rows: list[dict]) -> None:
    """Adds `rows` to the folder's evaluations, in place of older ones of the same."""
    text = json.dumps([*others(folder, rows), *rows], indent=1) + "\n"
    write_atomically(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))


def _by_class(folder, judged, row, taken):
    """A CSV line for each class of the data, shares of its images, empty where it has none; returns the file's name,
    which is none of those `taken`: they are other evaluations'."""
    names = judged.data.class_names or tuple(map(str, range(judged.data.classes)))
    of = "model" if Path(row["weights"]).is_dir() else Path(row["weights"]).stem
    how = f"{row['resolution']}px" + (f"_crop{row['crop']:g}" if row["crop"] != 1 else "")
    how += "_mirror" if row["flip"] else ""
    stem = re.sub(r"[^\w.-]", "_", f"by_class_{judged.data.path.stem}_{judged.labels}_{of}_{how}")
    numbered = itertools.chain([f"{stem}.csv"], (f"{stem}_{number}.csv" for number in itertools.count(2)))
    name = next(name for name in numbered if name not in taken)
    taken.add(name)

    def write(path):
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("class", "images", "top1", "top5"))
            for label, (top1, top5, images) in zip(names, judged.marks.by_label.tolist(), strict=True):
                shares = (f"{top1 / images:.6f}", f"{top5 / images:.6f}") if images else ("", "")
                lines.writerow((label, images, *shares))

    write_atomically(folder / name, write)
    return name
