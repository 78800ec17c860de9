"""What the model makes of each validation image, kept for the report: predictions.npz in the run folder.

A reducer of the evaluation loop. Each rank writes the rows of its images into a table of all of them, and the tables
are summed, so no image counts twice. The pictures are what the network saw, cropped, not the files.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ffcv_ops import order
from ffcv_ops.errors import UserError
from ffcv_ops.files import open_regular, write_atomically
from ffcv_ops.storage.info import exists
from ffcv_ops.storage.sources import source_names
from training import distributed
from training.run import Run

FILE = "predictions.npz"
SHOWN = 24  # mistakes that are kept as pictures: those of which the model was surest
SIDE = 160  # of a kept picture at most, pixels


class Predictions(NamedTuple):
    """Of n validation images, in the file's order, and of k <= SHOWN mistakes among them, the surest first."""

    labels: np.ndarray  # int64 [n]
    predicted: np.ndarray  # int64 [n]
    confidence: np.ndarray  # softmax of the predicted class, float64 [n]
    classes: np.ndarray  # names, str [classes]
    shown: np.ndarray  # rows of the above, int64 [k]
    pictures: np.ndarray  # uint8 [k, side, side, 3]
    files: np.ndarray = np.array([], str)  # what they were made from, str [k]; none where that was not recorded


class CollectPredictions:
    """Reduces to `Predictions` of the validation set of a stage's data, in all ranks."""

    def __init__(self, run: Run, stage):
        self.data, device = run.datasets[stage.data], run.ranks.device
        images, side = self.data.val.samples, stage.eval_side
        part = order.evaluation_share(images, rank=run.ranks.rank, world=run.ranks.world)
        self.rows = torch.from_numpy(part).to(device)  # of this rank's images in the file, rising
        self.seen = 0  # images of this rank
        self.table = torch.zeros(images, 4, dtype=torch.float64, device=device)  # label, predicted, confidence, times
        # This rank's surest mistakes so far, the surest first: confidence (-1: none), row, image
        self.confidence = torch.full((SHOWN,), -1.0, dtype=torch.float64, device=device)
        self.mistakes = torch.full((SHOWN,), -1, device=device)
        self.pictures = torch.zeros(SHOWN, side, side, 3, dtype=torch.uint8, device=device)

    def update(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        confidence, predicted = logits.double().softmax(1).max(1)
        rows = self.rows[self.seen : self.seen + len(labels)]
        self.seen += len(labels)
        self.table[rows] = torch.stack([labels, predicted, confidence, torch.ones_like(confidence)], dim=1)
        # A confidence that is not a number comes last, here as in `result`.
        mistaken = torch.where(predicted != labels, confidence.nan_to_num(0.0), -1.0)
        # Stable: of mistakes that are as sure the one with the lower row, which came first, is kept.
        best = torch.cat([self.confidence, mistaken]).sort(descending=True, stable=True)
        self.confidence, place = best.values[:SHOWN], best.indices[:SHOWN]
        self.mistakes = torch.cat([self.mistakes, rows])[place]
        older, newer = self.pictures[place.clamp(max=SHOWN - 1)], images[(place - SHOWN).clamp(min=0)]
        self.pictures = torch.where((place < SHOWN)[:, None, None, None], older, newer)

    def result(self) -> Predictions:
        labels, predicted, confidence, times = distributed.all_reduce_sum(self.table).cpu().numpy().T
        if not (times == 1).all():
            count = int((times != 1).sum())
            raise RuntimeError(f"{self.data.val.path}: {count} images were not predicted exactly once")
        wrong = np.flatnonzero(labels != predicted)
        shown = wrong[np.lexsort((wrong, -confidence[wrong]))][:SHOWN]
        own = dict(zip(self.mistakes.tolist(), self.pictures, strict=True))
        pictures = torch.zeros(len(shown), *self.pictures.shape[1:], dtype=torch.int32, device=self.pictures.device)
        for place, row in enumerate(shown.tolist()):
            if row in own:  # in one rank only, the others add zeros
                pictures[place] = own[row]
        pictures = distributed.all_reduce_sum(pictures).cpu().numpy().astype(np.uint8)
        names = self.data.val.class_names or self.data.train.class_names or ()
        names = [*names, *(f"class {number}" for number in range(len(names), self.data.classes))]
        sources = list(source_names(self.data.val.path)) if exists(self.data.val.path) else []
        files = np.array([sources[row] for row in shown] if len(sources) == len(labels) else [], str)
        labels, predicted = labels.astype(np.int64), predicted.astype(np.int64)
        return Predictions(labels, predicted, confidence, np.array(names), shown, pictures, files)


def save(path: Path, predictions: Predictions, *, say=print) -> None:
    """Writes them, the pictures reduced to SIDE pixels. A full disk costs a line: only the report is poorer for it."""
    side = min(SIDE, predictions.pictures.shape[1])
    size, filter_ = (side, side), Image.Resampling.LANCZOS
    small = [np.asarray(Image.fromarray(picture).resize(size, filter_)) for picture in predictions.pictures]
    predictions = predictions._replace(pictures=np.array(small, np.uint8).reshape(len(small), side, side, 3))

    def write(temporary):
        with temporary.open("wb") as file:  # a name alone would get .npz at its end
            np.savez_compressed(file, **predictions._asdict())

    try:
        write_atomically(path, write)
    except OSError as error:
        say(f"warning: {path} cannot be written ({error.strerror}); the report will show no mistakes")


def load(path: Path) -> Predictions | None:
    """What `save` wrote; None where there is none or it cannot be read (a report does without)."""
    try:
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            return Predictions(*(file[name] for name in Predictions._fields if name != "files" or name in file))
    except (OSError, UserError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
