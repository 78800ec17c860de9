"""What the loaders are asked to do: images of the corpus -> uint8 batches."""

from typing import NamedTuple


class Task(NamedTuple):
    """`augment`: 3-Augment and brightness, contrast and saturation in 0.7 to 1.3, after the flip."""

    name: str
    title: str
    split: str
    crop: str  # rrc: random resized crop; src: simple random crop; centre: of evaluation, whole short side
    size: int  # pixels, side of the square result
    flip: bool = True
    augment: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("A", "RRC 224", "train", "rrc", 224),
        Task("B", "RRC 224 + 3-Augment", "train", "rrc", 224, augment=True),
        Task("C", "SRC 224 + 3-Augment", "train", "src", 224, augment=True),
        Task("D", "SRC 128 + 3-Augment", "train", "src", 128, augment=True),
        Task("E", "eval 224", "val", "centre", 224, flip=False),
    )
}
DECODE = Task("decode", "JPEG library alone", "train", "none", 0, flip=False)  # the floors: whole files -> pixels
EVERY = TASKS | {DECODE.name: DECODE}
JITTER = 0.3
