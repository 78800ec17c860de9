"""What the model makes of each validation image, kept for the report: predictions.npz in the run folder.

In: a stage's model and its validation batches. Out: arrays without pickled objects. Each rank writes the rows of its
images into a table of all of them, and the tables are summed, so no image counts twice. The pictures are what the
network saw, cropped, not the files.
"""

import heapq
import itertools
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from ffcv_ops import order
from ffcv_ops.files import write_atomically
from training import distributed
from training.evaluate import outputs
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


@torch.inference_mode()
def collect(run: Run, stage, model: nn.Module, batches) -> Predictions:
    """One pass over the validation set. All ranks must come here together, and all get the whole."""
    data, ranks = run.datasets[stage.data], run.ranks
    share = order.evaluation_share(data.val.samples, rank=ranks.rank, world=ranks.world).tolist()
    table = torch.zeros(data.val.samples, 4, dtype=torch.float64, device=ranks.device)
    kept, done = [], 0  # kept: a heap of (confidence, -sample, image), the least sure mistake first
    was_training = model.training
    to_model, to_keep = itertools.tee(batches)
    answers = outputs(model.eval(), to_model, autocast=run.autocast, flip=stage.eval_flip)
    for (logits, labels), (images, _) in zip(answers, to_keep, strict=True):
        sure, predicted = logits.double().softmax(1).max(1)
        samples = share[done : done + len(labels)]
        table[samples] = torch.stack([labels, predicted, sure, torch.ones_like(sure)], dim=1)
        done += len(labels)
        wrong, sure = (predicted != labels).cpu(), sure.tolist()  # once a batch: the host waits for the device
        for row in wrong.nonzero()[:, 0].tolist():
            key = (sure[row], -samples[row])
            if len(kept) < SHOWN:
                heapq.heappush(kept, (*key, images[row].cpu().clone()))
            elif key > kept[0][:2]:
                heapq.heapreplace(kept, (*key, images[row].cpu().clone()))
    model.train(was_training)
    labels, predicted, sure, times = distributed.all_reduce_sum(table).cpu().numpy().T
    if not (times == 1).all():
        raise RuntimeError(f"{data.val.path}: {int((times != 1).sum())} images were not predicted exactly once")
    wrong = np.flatnonzero(labels != predicted)
    shown = wrong[np.lexsort((wrong, -sure[wrong]))][:SHOWN]
    pictures = torch.zeros(len(shown), stage.eval_side, stage.eval_side, 3, dtype=torch.int32, device=ranks.device)
    own = {-sample: image for _, sample, image in kept}
    for place, sample in enumerate(shown.tolist()):
        if sample in own:
            pictures[place] = own[sample].to(ranks.device)
    pictures = distributed.all_reduce_sum(pictures).cpu().numpy().astype(np.uint8)
    names = data.val.class_names or data.train.class_names or ()
    names = [*names, *(f"class {number}" for number in range(len(names), data.classes))]
    return Predictions(labels.astype(np.int64), predicted.astype(np.int64), sure, np.array(names), shown, pictures)


def save(path: Path, made: Predictions, *, say=print) -> None:
    """Writes them, the pictures reduced to SIDE pixels. A full disk costs a line: only the report is poorer for it."""
    side = min(SIDE, made.pictures.shape[1])
    small = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.LANCZOS)) for one in made.pictures]
    made = made._replace(pictures=np.array(small, np.uint8).reshape(len(small), side, side, 3))

    def write(temporary):
        with temporary.open("wb") as file:  # a name alone would get .npz at its end
            np.savez_compressed(file, **made._asdict())

    try:
        write_atomically(path, write)
    except OSError as error:
        say(f"warning: {path} cannot be written ({error.strerror}); the report will show no mistakes")


def load(path: Path) -> Predictions | None:
    """What `save` wrote; None where there is none or it cannot be read (a report does without)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Predictions(*(file[name] for name in Predictions._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
