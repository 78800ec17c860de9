"""A stage's loaders: the only place that spells the pipeline out.

    for images, labels in train_loader(...).epoch(3): ...

images: uint8 [batch, size, size, 3], labels: int64 [batch], on the device. They are FFCV's buffers: valid until the
next batch is asked for, so copy what you keep. An error in FFCV's thread, which stock FFCV swallows and then waits for
ever, is raised in the loop.
"""

import os
from queue import Empty

import numpy as np
import torch
from ffcv.loader import Loader as FFCVLoader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers import MemoryManager, ProcessCacheManager
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import Graph
from ffcv.reader import Reader
from ffcv.transforms import ToDevice, ToTensor
from numba import typeof

from ffcv_ops import crops, erasing, order, policies, randaugment, resample
from ffcv_ops.decoders import ImageDecoder, LabelDecoder, Plan, SampleError
from ffcv_ops.errors import BadInput
from ffcv_ops.fields import column, image_pages, levels_of, pages_of, source_of


class _Iterator(EpochIterator):
    """FFCV's producer thread; keeps what went wrong, and can be stopped from outside."""

    failure: BaseException | None = None

    def run(self):
        try:
            super().run()
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self.failure = error
            self.output_queue.put(None)

    def __next__(self):
        try:
            return super().__next__()
        except StopIteration:
            if self.failure is None:
                raise
            raise self.failure from None

    def close(self):
        """Ends the thread and frees its queue; called also when the consumer leaves an epoch early."""
        self.terminate_event.set()
        while self.is_alive():
            try:
                self.output_queue.get(timeout=0.01)
            except Empty:
                continue
        super().close()
        self.closed = True


def _regions(reader: Reader) -> tuple[np.ndarray, np.ndarray]:
    """Where the file's images begin, in rising order, and their sizes in bytes (uint64)."""
    by_pointer = np.argsort(reader.alloc_table["ptr"], kind="stable")
    return tuple(np.ascontiguousarray(reader.alloc_table[name][by_pointer]) for name in ("ptr", "size"))


class _MappedFile(MemoryManager):
    """The whole file in the page cache (memory-mapped), for data that fits into memory.

    Stands in for FFCV's OSCacheManager, whose constructor builds Python dictionaries with an entry per sample and
    marks Numba's own `uint8[::1]` type as read-only for the whole process, which breaks kernels compiled before.
    """

    def __init__(self, reader: Reader):
        self.pointers, self.sizes = _regions(reader)
        self.bytes = np.memmap(reader.file_name, np.uint8, mode="r").view(np.ndarray)

    @property
    def state(self):
        """What FFCV hands to the decoders, and from there to the compiled reader."""
        return self.bytes, self.pointers, self.sizes

    @property
    def state_type(self):
        return typeof(self.state)

    def schedule_epoch(self, batches):
        return self

    def start_batch(self, batch: int):
        """Nothing to fetch."""

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        """The mapping lives as long as the loader."""

    def compile_reader(self):
        def locate(pointers, state):
            data, known, sizes = state
            return np.uint64(data.ctypes.data) + pointers, sizes[np.searchsorted(known, pointers)].astype(np.int64)

        return locate


class _PagedFile(ProcessCacheManager):
    """FFCV's own page cache, for files larger than memory, told the images behind the draw ids.

    Without its constructor, which builds a Python set for every sample, and of a pyramid the full level alone: a page
    of a smaller one belongs to many of the full level's, and would stay from its first use to its last.
    """

    def __init__(self, reader: Reader):
        self.reader = reader
        self.ptrs, self.sizes = _regions(reader)
        self.sample_to_pages = pages_of(column(reader, "image"), reader.page_size)[:, None]

    def schedule_epoch(self, batches):
        return super().schedule_epoch([batch % len(self.sample_to_pages) for batch in batches])

    def compile_reader(self):
        page_size = np.uint64(self.reader.page_size)

        def locate(pointers, state):
            memory, known, sizes, slot_of_page = state
            slots = slot_of_page[pointers // page_size].astype(np.uint64)
            addresses = np.uint64(memory.ctypes.data) + slots * page_size + pointers % page_size
            return addresses, sizes[np.searchsorted(known, pointers)].astype(np.int64)

        return locate


class Loader(FFCVLoader):
    """Stock FFCV's loader with epochs by number. Build one with `train_loader` or `eval_loader`.

    The constructor does what FFCV's does, part by part, with our memory managers and without its global seed. A memory
    manager's "reader" here takes all pointers of a batch and gives addresses (uint64) and sizes (int64).
    """

    def __init__(self, path, *, decoder: ImageDecoder, of_epoch, batch: int, device, cache):
        self.fname, self.batch_size, self.batches_ahead = str(path), batch, 3
        self.decoder, self.of_epoch, self.num_workers = decoder, of_epoch, decoder.workers
        self.reader = Reader(self.fname)
        levels = levels_of(self.reader) if decoder.plan.least > 0 else ("image",)
        if cache == "process" and len(levels) > 1:
            raise BadInput(
                f"{self.fname}: data.cache process would hold nearly all of a file with levels {', '.join(levels)} in"
                " memory; set data.cache=os, or stage.least_downscale=none"
            )
        decoder.levels = [column(self.reader, name) for name in levels]
        self.memory_manager = _MappedFile(self.reader) if cache == "os" else _PagedFile(self.reader)
        upload = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
        self.pipeline_specs = {
            "image": PipelineSpec("image", transforms=[decoder, ToTensor(), *upload]),
            "label": PipelineSpec("label", transforms=[LabelDecoder(), ToTensor(), *upload]),
        }
        fields = {name: number for number, name in enumerate(self.reader.handlers)}
        self.graph = Graph(
            self.pipeline_specs, self.reader.handlers, fields, self.reader.metadata,
            self.memory_manager.compile_reader(),
        )  # fmt: skip
        Compiler.set_enabled(False)  # what FFCV would compile calls our own kernels, once per batch
        try:
            self.generate_code()
        finally:
            Compiler.set_enabled(True)

    def __iter__(self):
        return self.epoch(0)

    def __len__(self):
        return -(-len(self.of_epoch(0)) // self.batch_size)

    def epoch(self, number: int, first_batch: int = 0):
        """Yields (images, labels) of epoch `number`, from batch `first_batch` on; always the same ones."""
        draw_ids = self.of_epoch(number)[first_batch * self.batch_size :]
        if len(draw_ids) == 0:
            return
        iterator = _Iterator(self, draw_ids)
        try:
            for images, labels in iterator:
                yield images, labels[:, 0]
        except SampleError as error:
            index = int(error.args[0])
            raise BadInput(
                f"{self.fname}: sample {index} {source_of(self.fname, index)} could not be decoded (damaged data);"
                " write the file again, or leave that image out"
            ) from error
        finally:
            iterator.close()


def worker_count(workers: int | str) -> int:
    """Decoding threads of this process: `auto` shares the cores among the processes of this machine."""
    cores = len(os.sched_getaffinity(0))
    if workers == "auto":
        return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return min(workers, cores)


def plan_of(stage) -> Plan:
    """What happens to a training sample of this stage. Raises BadInput where rand_config cannot be read."""
    return Plan(
        crop=crops.NAMES[stage.crop],
        scale_low=float(stage.rrc_scale[0]),
        scale_high=float(stage.rrc_scale[1]),
        ratio=float(stage.eval_crop),
        interpolation=resample.NAMES[stage.interpolation],
        least=float(stage.least_downscale or 0.0),
        flip=float(stage.flip),
        augment=policies.NAMES[stage.augment],
        three_ops=sum(policies.THREE_OPS[op] for op in stage.three_ops),
        **{f"rand_{name}": value for name, value in randaugment.parse(stage.rand_config)._asdict().items()},
        jitter=float(stage.jitter or 0.0),
        erase=float(stage.erasing),
        erase_mode=erasing.NAMES[stage.erasing_mode],
    )


def train_loader(
    path, num_samples, stage, *, seed, rank=0, world=1, workers="auto", device=None, cache="os", shuffle_pages=None
) -> Loader:
    """Training batches of this rank: `stage` names crop, augmentation, repeats, global batch and mixing chunk.

    shuffle_pages: None, or how many of the file's pages are shuffled together (order.py).

    Raises BadInput when the data set is smaller than one batch or the batch does not divide among the ranks.
    """
    if stage.batch % world:
        raise BadInput(f"stage {stage.name}: batch {stage.batch} does not divide among {world} processes")
    mixed = stage.mixup > 0 or stage.cutmix > 0
    if mixed and stage.batch // world % 2:
        raise BadInput(f"stage {stage.name}: mixing needs an even batch per process, not {stage.batch} / {world}")
    chunk = stage.mix_chunk if mixed else 1
    windows = None if shuffle_pages is None else order.Windows(image_pages(path), shuffle_pages)

    def of_epoch(epoch):
        ids = order.showings(num_samples, seed=seed, epoch=epoch, repeats=stage.repeats, windows=windows)
        global_order = order.arrange(ids, batch=stage.batch, chunk=chunk)
        return order.rank_share(global_order, batch=stage.batch, rank=rank, world=world)

    if len(of_epoch(0)) == 0:
        raise BadInput(
            f"{path}: {num_samples} images do not fill one batch of {stage.batch}"
            f" (stage {stage.name}, {stage.repeats} repeats); try {order.smaller_batch(stage, num_samples)} and a lower"
            " --stage.lr"
        )
    decoder = ImageDecoder(
        plan=plan_of(stage), resolution=stage.resolution, seed=seed, workers=worker_count(workers)
    )
    return Loader(
        path, decoder=decoder, of_epoch=of_epoch, batch=stage.batch // world,
        device=device or torch.device("cpu"), cache=cache,
    )  # fmt: skip


def eval_loader(
    path, num_samples, stage, *, batch, rank=0, world=1, workers="auto", device=None, cache="os"
) -> Loader:
    """Each image once over all ranks: shortest side to eval_side / eval_crop, centre crop, nothing random."""
    plan = Plan(
        crop=crops.CENTRE, ratio=float(stage.eval_crop), interpolation=resample.NAMES[stage.interpolation]
    )
    decoder = ImageDecoder(plan=plan, resolution=stage.eval_side, seed=0, workers=worker_count(workers))
    return Loader(
        path, decoder=decoder, of_epoch=lambda epoch: order.evaluation_share(num_samples, rank=rank, world=world),
        batch=batch, device=device or torch.device("cpu"), cache=cache,
    )  # fmt: skip
