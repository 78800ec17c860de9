"""The loaders of a .beton, in three lines:

    from ffcv_ops import train_loader
    loader = train_loader("train.beton", resolution=224, batch_size=256, augment="three", color_jitter=0.3, seed=0)
    for images, labels in loader: ...

images: uint8 [batch, height, width, 3] or, with `output`, normalized floats [batch, 3, height, width]. labels: int64
[batch]. Both are on `device`. Further fields of the file follow them in the batch, a named tuple.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypedDict, Unpack

import torch

from ffcv_ops import host, mixing, options, order, prefetch
from ffcv_ops.augment import chain, load
from ffcv_ops.corrupt_samples import CorruptSamples
from ffcv_ops.decoders import ImageDecoder
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.kernels import crops, resample
from ffcv_ops.options import keyword
from ffcv_ops.stock import IntField, RGBImageField
from ffcv_ops.storage.index import Index, column, levels_of, open_index, pages_of
from ffcv_ops.transform import TransformParams

MOST_SAMPLES = 1_000_000  # in a batch


class EvalOptions(TypedDict, total=False):
    """What `eval_loader` may be told."""

    resolution: Annotated[int, keyword("side of the square images, pixels", 224, low=8, high=4096)]
    batch_size: Annotated[int, keyword("samples of a batch, in this process", 256, low=1, high=MOST_SAMPLES)]
    interpolation: Annotated[Literal["bicubic", "bilinear"], keyword("of the resizing, antialiased", "bicubic")]
    crop_ratio: Annotated[float, keyword("center crop: its side / the resized short side", 0.875, above=0, high=1)]
    output: Annotated[
        Literal["uint8", "float32", "float16", "bfloat16"],
        keyword("[batch, height, width, 3]; floats: normalized, [batch, 3, height, width]",
                "uint8"),
    ]  # fmt: skip
    mean: Annotated[
        tuple[float, float, float],
        keyword("output as floats: of the channels in 0..1, which becomes 0", mixing.MEAN, low=0, high=1),
    ]
    std: Annotated[tuple[float, float, float], keyword("deviation, which becomes 1", mixing.STD, above=0, high=1)]
    fields: Annotated[
        tuple[str, ...] | None,
        keyword("fields of a batch; none: all, image and label first", None),
    ]
    container: Annotated[Literal["tuple", "dict"], keyword("a batch: a named tuple, or a dict by field", "tuple")]
    device: Annotated[str, keyword("where batches are wanted: cpu, cuda, cuda:1", "cpu")]
    workers: Annotated[
        int | Literal["auto"], keyword("threads that decode; auto: this process's share of the cores", "auto", low=1)
    ]
    cache: Annotated[
        Literal["os", "process"],
        keyword("process: pages are read ahead, for a file larger than memory on a slow disk", "os"),
    ]
    rank: Annotated[int | None, keyword("none: torch.distributed's where it is initialized, else 0", None, low=0)]
    world_size: Annotated[int | None, keyword("none: torch.distributed's, else 1", None, low=1)]
    reuse_memory: Annotated[bool, keyword("true: no copy; a batch is valid until the next one is asked for", False)]


class TrainOptions(EvalOptions, total=False):
    """What `train_loader` may be told."""

    crop: Annotated[
        Literal["rrc", "src", "center"], keyword("random resized crop, simple random crop, or evaluation's", "rrc")
    ]
    rrc_scale: Annotated[
        tuple[float, float],
        keyword("rrc: smallest and largest share of the image's area", (0.08, 1.0), above=0, high=1),
    ]
    min_oversampling: Annotated[
        float | None,
        keyword("decode less where so many pixels per output pixel remain: 1.2; none: exact", None, above=0, high=100),
    ]
    flip: Annotated[float, keyword("probability of a horizontal flip", 0.5, low=0, high=1)]
    augment: Annotated[str, keyword("three, rand, auto, trivial, ..., in a row a | b (docs/augmentations.md)", "none")]
    color_jitter: Annotated[
        float | None, keyword("brightness, contrast and saturation in 1 -+ this", None, above=0, high=1)
    ]
    erasing: Annotated[float, keyword("probability of random erasing", 0.0, low=0, high=1)]
    erasing_mode: Annotated[
        Literal["const", "rand", "pixel"], keyword("erase with the mean color, one random color, or noise", "pixel")
    ]
    repeats: Annotated[int, keyword("views of an image in an epoch, of 1 / repeats of the images", 1, low=1, high=100)]
    sampling: Annotated[
        Literal["uniform", "balanced"], keyword("images of an epoch: all alike, or each label equally often", "uniform")
    ]
    mix_chunk: Annotated[
        int | None,
        keyword("samples of a global batch that one process of DeiT's runs mixed; none: no matter", None, low=2),
    ]
    seed: Annotated[int, keyword("order, crops and augmentation follow from it", 0, low=0, high=2**63 - 1)]
    shuffle_pages: Annotated[
        int | None, keyword("pages of the file that are shuffled together; none: all", None, low=1, high=10**9)
    ]
    bad_limit: Annotated[
        float | None,
        keyword("share of an epoch's samples that may be damaged and replaced; none: stop at one", None, low=0, high=1),
    ]


def train_loader(path: Path | str, **given: Unpack[TrainOptions]) -> "Loader":
    """Shuffled, augmented batches without end, an epoch each time it is iterated; the incomplete last one is dropped.

    path: a .beton, or a pattern of shards. The batches of step k of all ranks together depend on seed, epoch and
    batch_size * world_size alone. Raises UserError (one line for each fault) where a keyword or the file is wrong, and
    where the file does not fill one batch. Each process of a job makes its own.
    """
    said = _complete(TrainOptions, given, "train_loader: ")
    index = _index(path, said)
    samples, batch = len(index.metadata), said.batch_size * said.world_size
    steps = order.epoch_length(samples, repeats=said.repeats) // batch
    if steps == 0:
        raise UserError(f"{path}: {samples} images do not fill one batch of {batch}; give a smaller batch_size")
    if batch % (said.mix_chunk or 1):
        raise UserError(f"train_loader: mix_chunk {said.mix_chunk} does not divide the global batch of {batch}")
    windows = None
    if said.shuffle_pages is not None:
        windows = order.PageWindows(pages_of(column(index, "image"), index.page_size), said.shuffle_pages)

    if said.sampling == "balanced" and not isinstance(index.handlers.get("label"), IntField):
        raise UserError(f"{path}: sampling 'balanced' needs an integer field `label`")
    labels = column(index, "label") if said.sampling == "balanced" else None

    def sample_ids(epoch):
        views = {"seed": said.seed, "epoch": epoch, "repeats": said.repeats}
        ids = order.epoch_sample_ids(samples, **views, windows=windows, labels=labels)
        global_order = order.arrange(ids, batch=batch, chunk=said.mix_chunk or 1)
        return order.rank_share(global_order, batch=batch, rank=said.rank, world=said.world_size)

    settings = {"samples": samples, "batch_size * world_size": batch}
    settings |= {name: getattr(said, name) for name in ("seed", "repeats", "sampling", "mix_chunk", "shuffle_pages")}
    share = prefetch.Order(sample_ids, steps * said.batch_size, said.batch_size)
    corrupt = CorruptSamples(index, seed=said.seed, limit=said.bad_limit)
    return Loader(index, _decoder(_plan(said), said, seed=said.seed), share, corrupt, said=said, settings=settings)


def eval_loader(path: Path | str, **given: Unpack[EvalOptions]) -> "Loader":
    """Each image once over all ranks, in the file's order: shortest side to resolution / crop_ratio, center crop,
    nothing random. The last batch may be smaller; ranks may have different numbers of batches. A corrupt sample always
    stops it: what counts every image once cannot replace one.

    path: a .beton, or a pattern of shards. Raises UserError where a keyword or the file is wrong.
    """
    said = _complete(EvalOptions, given, "eval_loader: ")
    index = _index(path, said)
    interpolation = resample.NAMES[said.interpolation]
    params = TransformParams(crop=crops.CENTER, ratio=said.crop_ratio, interpolation=interpolation)
    part = order.evaluation_share(len(index.metadata), rank=said.rank, world=said.world_size)
    settings = {name: getattr(said, name) for name in ("batch_size", "rank", "world_size")} | {
        "samples": len(index.metadata)
    }
    share = prefetch.Order(lambda epoch: part, len(part), said.batch_size)
    corrupt = CorruptSamples(index, seed=0, limit=None)
    return Loader(index, _decoder(params, said, seed=0), share, corrupt, said=said, settings=settings)


def plan_of(**given: Unpack[TrainOptions]) -> TransformParams:
    """What happens to a training sample. Executes and compiles augmentations of the user's own; what is wrong with one
    is a UserError."""
    return _plan(_complete(TrainOptions, given, "train_loader: "))


def decoding_threads(workers: int | str, device: torch.device) -> int:
    """`auto` shares the cores among the processes of this machine. On a GPU one core is left to the thread that
    launches its kernels."""
    if workers == "auto":
        return max(host.cores_per_process() - (device.type == "cuda"), 1)
    return min(workers, host.usable_cores())


class Loader(prefetch.Loader):
    """Batches of a .beton: made by `train_loader` and `eval_loader`.

    Iterating gives the next epoch, `epoch(number)` a certain one. `state_dict` is where it stands, to the batch. It may
    be pickled for a process that is started (spawn), where it is opened anew; after a fork it is refused.
    """

    def __init__(
        self, index: Index, decoder: ImageDecoder, share: prefetch.Order, corrupt: CorruptSamples, *, said, settings
    ):
        super().__init__(index, decoder, share, corrupt, device=said.device, cache=said.cache, fields=said.fields)
        self.said, self.settings, self.process = said, settings, os.getpid()
        self.images = [isinstance(index.handlers[name], RGBImageField) for name in said.fields]
        self.next = self.now = (0, 0)  # epoch and batch: where the next iteration begins; where this one stands
        self.running = None  # the epoch under way
        self.closed = False

    def __iter__(self) -> Iterator:
        """The next epoch, or what is left of the one whose state was loaded. It ends another that is under way."""
        from ffcv_ops.warm_up import prepare_kernels  # llvmlite and rich, for what compiles

        self._check_usable()
        prepare_kernels(lambda text: print(f"ffcv_ops: {text}", file=sys.stderr), self.decoder.params)
        self._end_epoch()
        (epoch, start), self.next = self.next, (self.next[0] + 1, 0)
        self.now, batches = (epoch, start), self.epoch(epoch, start)
        self.running = batches
        try:
            for place, batch in enumerate(batches, start + 1):
                self.now = (epoch, place) if place < len(self) else self.next
                yield batch
        finally:
            batches.close()
        if self.running is not batches:
            raise UserError(f"{self.reader.path}: another epoch of this loader was begun; make a loader for each")
        self.running = None

    def _end_epoch(self):
        if self.running is not None:
            self.running.close()
        self.running = None

    def epoch(self, number: int, start: int = 0, *, resolution: int | None = None) -> Iterator:
        """The batches of epoch `number` from batch `start` on, always the same ones. resolution: of the images, from
        this epoch on."""
        self._check_usable()
        for batch in super().epoch(number, start, resolution=resolution):
            values = map(self._handed_out, batch, self.images)
            yield (
                self.batch(*values)
                if self.said.container == "tuple"
                else dict(zip(self.said.fields, values, strict=True))
            )

    def _check_usable(self):
        if self.closed:
            raise UserError(f"{self.reader.path}: this loader is closed; make another")
        if os.getpid() != self.process:
            raise UserError(f"{self.reader.path}: a loader cannot be used after a fork; make it in this process")

    def _handed_out(self, value, is_image):
        if is_image and self.said.output != "uint8":
            return mixing.normalize(value, self.said.mean, self.said.std).to(getattr(torch, self.said.output))
        return value if self.said.reuse_memory or not isinstance(value, torch.Tensor) else value.clone()

    def set_epoch(self, number: int) -> None:
        """The next iteration is epoch `number`: from its start, unless the state that was loaded is in it."""
        if number != self.next[0]:
            self.next = self.now = (int(number), 0)

    def state_dict(self) -> dict:
        """The place behind the last batch that was given out, as plain values: it may be saved in the middle of an
        epoch, and loaded on another number of ranks with the same global batch."""
        epoch, batch = self.now
        return {"epoch": epoch, "batch": batch, "settings": dict(self.settings)}

    def load_state_dict(self, state: dict) -> None:
        """The next iteration goes on where `state` was taken. UserError where that was a loader of other batches."""
        try:
            theirs, place = state["settings"], (int(state["epoch"]), int(state["batch"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.reader.path}: not the state of a loader ({error!r})") from error
        for name in self.settings:
            if theirs.get(name) != self.settings[name]:
                wanted = f"{name} {theirs.get(name)}, not {self.settings[name]}"
                raise UserError(f"{self.reader.path}: the state is of a loader with {wanted}")
        self.next = self.now = place

    def close(self) -> None:
        """Ends an epoch under way, and the threads. The loader cannot be used again."""
        self._end_epoch()
        for decoder in self.decoders:
            decoder.threads.shutdown()
        self.closed = True

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *failure) -> None:
        self.close()

    def __reduce__(self):
        given = vars(self.said) | {"device": str(self.said.device)}
        return _again, (train_loader if "seed" in given else eval_loader, self.reader.path, given, self.state_dict())


def _again(make, path, given, state):
    loader = make(path, **given)
    loader.load_state_dict(state)
    return loader


def _complete(cls, given, where):
    """All options as attributes, with this process's place among the others."""
    given = {name: str(value) if isinstance(value, torch.device) else value for name, value in given.items()}
    said = options.complete(cls, given, where)
    try:
        said.device = torch.device(said.device)
    except RuntimeError:
        raise UserError(f"{where}device is {said.device!r}; it must be cpu, cuda or cuda:N") from None
    if said.device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{where}device is {said.device}, and torch sees no GPU; give device='cpu'")
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if said.world_size is None and not together and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{where}one of {os.environ['WORLD_SIZE']} processes, but torch.distributed is not initialized; make the"
            " loader after init_process_group, or give rank and world_size"
        )
    if said.world_size is None:
        said.world_size = torch.distributed.get_world_size() if together else 1
    if said.rank is None:
        said.rank = torch.distributed.get_rank() if together else 0
    if said.rank >= said.world_size:
        raise UserError(f"{where}rank {said.rank} is not one of world_size {said.world_size}, which count from 0")
    return said


def _plan(said) -> TransformParams:
    interpolation = resample.NAMES[said.interpolation]
    text = chain.text_of(
        said.augment, color_jitter=said.color_jitter, erasing=said.erasing, erasing_mode=said.erasing_mode
    )
    return TransformParams(
        crop=crops.NAMES[said.crop],
        scale_low=said.rrc_scale[0],
        scale_high=said.rrc_scale[1],
        ratio=said.crop_ratio,
        interpolation=interpolation,
        min_oversampling=said.min_oversampling or 0.0,
        flip=said.flip,
        chain=load.compiled(load.from_text(text), interpolation),
    )


def _decoder(params, said, *, seed):
    workers = decoding_threads(said.workers, said.device)
    return ImageDecoder(params=params, resolution=said.resolution, seed=seed, workers=workers)


def _index(path, said) -> Index:
    """The file, after its fields are those that are asked for: `said.fields` names them all."""
    index = open_index(path)
    if said.fields is None:
        first = [name for name in ("image", "label") if name in index.handlers]
        said.fields = (*first, *(name for name in index.handlers if name not in (*first, *levels_of(index))))
    for name in said.fields:
        if name not in index.handlers:
            nearest = options.nearest(name, index.handlers)
            raise UserError(f"{path}: has no field {one_line(name)!r}; the nearest is {one_line(nearest)!r}")
    if "image" not in said.fields:
        raise UserError(f"{path}: `fields` must hold 'image'")
    return index
