"""The loader in use: the same batches whatever the threads, ranks and processes, and errors that arrive."""

import time
import warnings
from pathlib import Path

import numpy as np

from bench.faults import betons, campaign
from bench.faults.campaign import OURS, STOCK, Fault

SIDE, BATCH = 64, 8
LIMIT, SOON = 60, 5  # seconds until all has been read, and until an error must have arrived


def run(folder: Path, *, quick: bool) -> list[Fault]:
    data = betons.write(folder)
    first = campaign.forked(read_ours, data, limit=LIMIT).value
    faults = []
    for workers, ranks in ((1, 1), (2, 1), (1, 2), (1, 4)):
        again = campaign.forked(read_ours, data, workers, ranks, limit=LIMIT).value
        faults += _compared(OURS, f"{workers} threads, {ranks} ranks", first, again)
    faults.append(_failing(OURS, _ours_fails, data))
    if not quick:
        one, other = (campaign.forked(_stock, data, limit=LIMIT).value for _ in range(2))
        faults += _compared(STOCK, "the same seed again", one, other)
        faults.append(_failing(STOCK, _stock_fails, data))
    return faults


def _compared(who: str, name: str, one, other) -> list[Fault]:
    """A fault for each batch. `one`, `other`: lists of pixels, None where they could not be read."""
    if not one or not other or len(one) != len(other):
        return [Fault(who, name, "crash", "nothing was read")]
    equal = [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]
    return [Fault(who, f"batch {k}, {name}", "harmless" if same else "silent", "") for k, same in enumerate(equal)]


def _failing(who: str, function, data: Path) -> Fault:
    ended = campaign.forked(function, data, limit=LIMIT)
    if ended.status is not None and ended.value is None:
        return Fault(who, "an operation that raises", "silent", ended.last_line)
    arrived = ended.status is not None and ended.value <= SOON
    return Fault(who, "an operation that raises", "detected" if arrived else "hang", f"{ended.value} s")


def read_ours(data: Path, workers: int = 1, ranks: int = 1):
    """The global batches of an epoch, put together from what each rank reads."""
    loaders = [_loader(data, workers, rank, ranks) for rank in range(ranks)]
    parts = [[images.numpy().copy() for images, _ in loader.epoch(3)] for loader in loaders]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _loader(data: Path, workers: int, rank: int, ranks: int):
    from config.recipe import BASE_RECIPE, load_recipe
    from ffcv_ops import loader

    keys = {"stage.resolution": SIDE, "stage.batch": BATCH, "stage.mix_chunk": BATCH}
    stage = load_recipe(BASE_RECIPE, {key: str(value) for key, value in keys.items()}).stages[0]
    return loader.train_loader(
        data, betons.SAMPLES, stage, seed=7, placement=loader.Placement(workers=workers, rank=rank, world=ranks)
    )


def _ours_fails(data: Path) -> float | None:
    """Seconds until what an operation raises in FFCV's thread is raised in the loop."""
    from ffcv_ops import decoders

    decoders.LabelDecoder.generate_code = lambda self: _raises
    return _seconds(_loader(data, 1, 0, 1).epoch(0))


def _stock_fails(data: Path) -> float | None:
    return _seconds(_stock_loader(data, _failing_operation()))


def _raises(*given):
    raise ArithmeticError("an operation that raises")


def _seconds(batches) -> float | None:
    began = time.monotonic()
    try:
        for _ in batches:
            pass
    except ArithmeticError:
        return time.monotonic() - began


def _stock(data: Path):
    return [images.numpy().copy() for images, _ in _stock_loader(data)]


def _stock_loader(data: Path, *more):
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    warnings.simplefilter("ignore")
    np.random.seed(7)
    image = [RandomResizedCropRGBImageDecoder((SIDE, SIDE)), RandomHorizontalFlip(), ToTensor(), *more]
    return Loader(
        str(data), batch_size=BATCH, num_workers=1, order=OrderOption.RANDOM, os_cache=True, seed=7,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip


def _failing_operation():
    from ffcv.pipeline.operation import Operation

    class Fails(Operation):
        def generate_code(self):
            return _raises

        def declare_state_and_memory(self, previous_state):
            return previous_state, None

    return Fails()
