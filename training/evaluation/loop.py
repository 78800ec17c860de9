"""The evaluation loop: every image once, also across ranks; what the models say of it goes to reducers.

Stock FFCV pads the last ranks with images that are counted twice. Here each rank has its own part of the data set
(ffcv_ops/order.py), and a reducer adds up over ranks at its end.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ffcv_ops import mixing


class Reducer(Protocol):
    """Makes one result of a model's outputs for a data set."""

    def update(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Takes the next batch of this rank, all on the device: uint8 images (n, side, side, 3), int64 labels (n,),
        float32 logits (n, classes). Images and labels are the loader's buffers: what is kept of them is copied. Nothing
        is read from the device, so that the host need not wait for it."""

    def result(self) -> Any:
        """The result of all ranks' batches. All ranks come here together."""


@torch.inference_mode()
def evaluate(
    models: Sequence[nn.Module],
    reducers: Sequence[Sequence[Reducer]],
    batches,
    *,
    autocast,
    flip: bool = False,
    normalize=mixing.normalize,
) -> list[list[Any]]:
    """Runs each of `models` over `batches` of (images, labels), which are read once, and gives its outputs to the
    `reducers` in its place. Returns their results, in the same order.

    `autocast`: a function that gives a fresh context. `normalize`: as `mixing.normalize`. `flip`: the logits of an
    image are the mean of its own and those of its mirror image. Models are in the mode (training or evaluation) in
    which they came when it ends.
    """
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    for images, labels in batches:
        # FFCV writes a later batch into these very buffers once the next one is asked for. On a CPU the reducers are
        # done with them by then. On a GPU their kernels may still wait in the queue: the loader's copies to the device
        # wait for them, and the loader waits for its copies before it decodes into the host's buffers again.
        for model, own in zip(models, reducers, strict=True):
            logits = predict(model, images, autocast=autocast, flip=flip, normalize=normalize)
            for reducer in own:
                reducer.update(images, labels, logits)
    for model, was_training in zip(models, were_training, strict=True):
        model.train(was_training)
    return [[reducer.result() for reducer in own] for own in reducers]


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, *, autocast, flip: bool, normalize=mixing.normalize) -> Tensor:
    """Float32 logits (n, classes) of uint8 images (n, side, side, 3), by `model` in evaluation mode."""
    inputs = normalize(images)
    with autocast():
        logits = model(inputs).float()
        return (logits + model(inputs.flip(3)).float()) / 2 if flip else logits
