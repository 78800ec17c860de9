"""What the loaders are asked to do: images of the dataset -> uint8 batches."""

from typing import Literal, NamedTuple


class Task(NamedTuple):
    """`augment`, after the flip: three is 3-Augment and brightness, contrast and saturation in 0.7 to 1.3; rand is
    RandAugment of two operations at magnitude 9; auto is AutoAugment's ImageNet policy; trivial is TrivialAugment."""

    name: str
    title: str
    split: str
    crop: str  # rrc: random resized crop; src: simple random crop; center: of evaluation, whole short side
    size: int  # pixels, side of the square result
    flip: bool = True
    augment: Literal["none", "three", "rand", "auto", "trivial"] = "none"


TASKS = {
    task.name: task
    for task in (
        Task("A", "RRC 224", "train", "rrc", 224),
        Task("B", "RRC 224 + 3-Augment", "train", "rrc", 224, augment="three"),
        Task("C", "SRC 224 + 3-Augment", "train", "src", 224, augment="three"),
        Task("D", "SRC 128 + 3-Augment", "train", "src", 128, augment="three"),
        Task("E", "eval 224", "val", "center", 224, flip=False),
        Task("F", "RRC 224 + RandAugment", "train", "rrc", 224, augment="rand"),
        Task("G", "RRC 224 + AutoAugment", "train", "rrc", 224, augment="auto"),
        Task("H", "RRC 224 + TrivialAugment", "train", "rrc", 224, augment="trivial"),
    )
}
DECODE = Task("decode", "JPEG library alone", "train", "none", 0, flip=False)  # the upper bounds: whole files -> pixels
EVERY = TASKS | {DECODE.name: DECODE}
JITTER = 0.3
