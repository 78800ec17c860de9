"""How the outputs of a model are held against the labels of a data set. It follows from names:

    its classes are the model's            as in training
    its classes are some of the model's    the model chooses among these only (ImageNet-A and -R: 200 of 1,000)
    its classes are 0, 1, 2, ...           these are numbers of the model's classes (ImageNet-V2)
    its files are ILSVRC2012_val_*         and its classes ImageNet's: by ReaL's labels too, in the same pass

The model's class names are those of config.json beside the weights, or of the recipe's data, or, where neither names
them, those of the ImageNet with so many classes. ReaL (Beyer et al. 2020) lists for each image all the classes that
people saw in it; an image for which it lists none does not count. timm brings the lists.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.data import RealLabelsImagenet
from torch import Tensor

from ffcv_ops import order
from ffcv_ops.errors import UserError
from ffcv_ops.storage import sources
from ffcv_ops.storage.index import describe
from ffcv_ops.storage.info import DatasetInfo, exists
from training.distributed import Ranks
from training.evaluation.accuracy import LabelSpec
from training.network.adapt_weights import synsets

IMAGENET = 1000  # classes


class OutputNames(NamedTuple):
    """What the model's outputs are called; `certain` is false where only their number suggests it."""

    names: tuple[str, ...] | None
    certain: bool


def output_names(count: int, given: Sequence[str] | None, train: str, val: str | None = None) -> OutputNames:
    """The names of `count` outputs: those `given`, else those of the .beton files that are there and name so many, else
    ImageNet's. Names that are numbers are taken from the training file only: validation's number the model's classes.
    """
    of_val = _names_in(val)
    for names in (given, _names_in(train), None if _are_numbers(of_val) else of_val):
        if names is not None and len(names) == count:
            return OutputNames(tuple(names), True)
    imagenets = synsets(count)
    return OutputNames(tuple(imagenets) if imagenets else None, False)


def _names_in(path):
    return describe(path).class_names if path is not None and exists(path) else None


def _are_numbers(names):
    return names is not None and set(names) == {str(number) for number in range(len(names))}


def label_specs(data: DatasetInfo, names: OutputNames, outputs: int, ranks: Ranks) -> dict[str, LabelSpec]:
    """{"own": ..., "ReaL": where it applies} for this rank's part of the data set and a model with so many outputs."""
    chosen = class_map(data, names, outputs)
    specs = {"own": LabelSpec(class_map=None if chosen is None else torch.tensor(chosen, device=ranks.device))}
    if chosen is None and names.names == tuple(synsets(IMAGENET)) and (answers := real_labels(data)) is not None:
        part = order.evaluation_share(data.samples, rank=ranks.rank, world=ranks.world)
        specs["ReaL"] = LabelSpec(answers=answers[part].to(ranks.device))
    return specs


def class_map(data: DatasetInfo, names: OutputNames, outputs: int) -> list[int] | None:
    """For each class of the data the model's output that stands for it; None where they are the same."""
    given, known = data.class_names, names.names
    if data.classes > (outputs if given is None else len(given)):
        raise UserError(f"{data.path}: its labels go up to {data.classes - 1}, beyond its or the model's classes")
    if given is None or given == known:
        return None
    place = {name: number for number, name in enumerate(known or ())}
    missing = [name for name in given if name not in place]
    if not missing:
        return [place[name] for name in given]
    if _are_numbers(given) and len(given) <= outputs and known is not None:
        return [int(name) for name in given]
    if not names.certain and len(given) == outputs:
        return None
    raise UserError(
        f"{data.path}: {len(missing)} of its {len(given)} classes are none of the model's {outputs}:"
        f" {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    )


def real_labels(data: DatasetInfo) -> Tensor | None:
    """ReaL's classes of each image, int64 (images, most), filled up with -1; None where the files' names do not say
    which of ImageNet's validation images these are."""
    found = [re.search(r"ILSVRC2012_val_\d{8}", name) for name in sources.source_names(data.path)]
    if not all(found) or len(found) != data.samples:
        return None
    lists = RealLabelsImagenet([""] * 50_000).real_labels
    answers = [lists.get(f"{match[0]}.JPEG", ()) for match in found]
    if not any(answers):
        return None
    most = max(map(len, answers))
    return torch.tensor([[*classes, *[-1] * (most - len(classes))] for classes in answers])
