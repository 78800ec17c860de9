"""Finished cells on the other labels and images that ImageNet models are judged by, kept in CELL/others.json.

V2 (Recht et al. 2019): other images of the same classes, a .beton. ReaL (Beyer et al. 2020): the validation images with
the set of classes that people saw in each; an image for which it is empty does not count.
"""

import json
import re
from pathlib import Path

from torch import nn

import train_imagenet
from ffcv_ops.errors import BadInput
from ffcv_ops.fields import describe
from ffcv_ops.index import source_names
from ffcv_ops.loader import eval_loader
from rn_vs_vit.grid import Cell
from training import distributed, weights
from training.datasets import open_sets
from training.evaluate import outputs
from training.state import write_atomically
from training.step import Job


def read(cell: Cell) -> dict[str, float]:
    """{"ReaL": top-1, "V2": top-1}, shares, as far as they are there."""
    path = cell.folder / "others.json"
    return json.loads(path.read_text()) if path.exists() else {}


def evaluate(cell: Cell, *, v2: str | None, real: str | None) -> None:
    """Adds what is asked for and not there yet."""
    known = read(cell)
    sets = {"V2": v2, "ReaL": real}
    missing = [name for name, file in sets.items() if file and name not in known]
    if not missing:
        return
    ranks = distributed.join(cell.run.speed.device)
    try:
        precision = train_imagenet.precision(cell.run.speed.precision, ranks.device)
        job = Job(cell.run, ranks, open_sets(cell.run), precision)
        network = train_imagenet.begin_stage(job, 0, weights.read(cell.folder), 0, head="keep").model.eval()
        for name in missing:
            beton = v2 if name == "V2" else cell.run.data.val
            said, labels = predicted(job, network, beton)
            answers = [{label} for label in labels] if name == "V2" else seen(real, beton, len(labels))
            judged = [one in answer for one, answer in zip(said, answers, strict=True) if answer]
            known[name] = sum(judged) / len(judged)
    finally:
        distributed.leave()
    write_atomically(cell.folder / "others.json", lambda path: path.write_text(json.dumps(known)))


def predicted(job: Job, network: nn.Module, beton: str) -> tuple[list[int], list[int]]:
    """The most likely class of each image, and its label."""
    (stage,) = job.run.stages
    batches = eval_loader(
        beton, describe(Path(beton)).samples, stage, batch=64,
        workers=job.run.data.workers, device=job.ranks.device, cache=job.run.data.cache,
    )  # fmt: skip
    found = [
        (logits.argmax(1).tolist(), labels.tolist())
        for logits, labels in outputs(network, batches.epoch(0), autocast=job.autocast, flip=stage.eval_flip)
    ]
    return tuple([one for batch in part for one in batch] for part in zip(*found, strict=True))


def seen(real: str, beton: str, samples: int) -> list[set[int]]:
    """The classes of each image of `beton`, whose recorded names say which of the 50,000 lists of `real` is its own."""
    try:
        lists = json.loads(Path(real).read_text())
        names = list(source_names(beton))
        numbers = [int(re.search(r"ILSVRC2012_val_(\d{8})", name)[1]) for name in names]
        answers = [set(lists[number - 1]) for number in numbers]
    except (OSError, ValueError, TypeError, IndexError) as error:
        needs = f"a list of 50,000 lists of classes, and the names ILSVRC2012_val_* of {beton}"
        raise BadInput(f"ReaL needs {real}, {needs} ({error})") from error
    if len(answers) != samples:
        raise BadInput(f"{beton} holds {samples} images and names {len(answers)}; write it again")
    return answers
