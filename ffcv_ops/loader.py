"""A stage's loaders: the only place that spells the pipeline out.

    for images, labels in train_loader(...).epoch(3): ...

images: uint8 [batch, size, size, 3], labels: int64 [batch], on the device. They are FFCV's buffers: valid until the
next batch is asked for, so copy what you keep. An error in FFCV's thread, which stock FFCV swallows and then waits for
ever, is raised in the loop.
"""

import os
from queue import Empty

import torch
from ffcv.loader import Loader as FFCVLoader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import Graph
from ffcv.transforms import ToDevice, ToTensor

from ffcv_ops import crops, erasing, order, policies, randaugment, resample
from ffcv_ops.corrupt_samples import CorruptSamples
from ffcv_ops.decoders import ImageDecoder, LabelDecoder, SampleError, TransformParams
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import Index, column, levels_of, open_index, pages_of
from ffcv_ops.storage.reading import Files, Pages


class _Iterator(EpochIterator):
    """FFCV's producer thread; keeps what went wrong, and can be stopped from outside."""

    failure: BaseException | None = None

    def run_pipeline(self, b_ix, batch_indices, batch_slot, cuda_event):
        """A batch, decoded again with stand-ins where samples are bad, out of files that have not changed.

        FFCV's event makes the device wait before this slot's memory *on the device* is written again. That in the host
        is written by our threads at once: so this thread waits until the device has copied the slot's last batch.
        """
        if self.loader.on_gpu:
            self.cuda_streams[batch_slot].synchronize()  # holds nothing but the slot's copies
        while True:
            try:
                result = super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)
            except SampleError as error:
                self.memory_context.check()
                batch_indices = self.loader.bad.replace(b_ix, batch_indices, error)
            else:
                self.memory_context.check()
                return result

    def run(self):
        try:
            if self.loader.on_gpu:  # the device's memory may be that of an epoch whose last steps are still to come
                for copies in self.cuda_streams:
                    copies.wait_stream(self.current_stream)
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
        if self.loader.on_gpu:  # copies that nobody waits for still use the memory that is freed next
            for copies in self.cuda_streams:
                copies.synchronize()
        super().close()
        self.closed = True


class Loader(FFCVLoader):
    """Stock FFCV's loader with epochs by number. Build one with `train_loader` or `eval_loader`.

    The constructor does what FFCV's does, part by part, with our index and memory managers and without its global seed.
    """

    def __init__(self, index: Index, *, decoder: ImageDecoder, of_epoch, showings: int, batch: int, device, cache,
                 bad: CorruptSamples):  # fmt: skip
        self.reader, self.batch_size, self.batches_ahead, self.showings = index, batch, 3, showings
        self.decoder, self.of_epoch, self.num_workers, self.bad = decoder, of_epoch, decoder.workers, bad
        levels = levels_of(index) if decoder.plan.least > 0 else ("image",)
        if cache == "process" and len(levels) > 1:
            raise UserError(
                f"{index.path}: data.cache process would hold nearly all of a file with levels {', '.join(levels)} in"
                " memory; set data.cache=os, or stage.least_downscale=none"
            )
        decoder.reads(index, levels)
        self.memory_manager = Files(index) if cache == "os" else Pages(index)
        self.on_gpu = device.type == "cuda"
        upload = [ToDevice(device, non_blocking=True)] if self.on_gpu else []
        self.pipeline_specs = {
            "image": PipelineSpec("image", transforms=[decoder, ToTensor(), *upload]),
            "label": PipelineSpec("label", transforms=[LabelDecoder(), ToTensor(), *upload]),
        }
        fields = {name: number for number, name in enumerate(index.handlers)}
        self.graph = Graph(
            self.pipeline_specs, index.handlers, fields, index.metadata, self.memory_manager.compile_reader()
        )
        Compiler.set_enabled(False)  # what FFCV would compile calls our own kernels, once per batch
        try:
            self.generate_code()
        finally:
            Compiler.set_enabled(True)

    def __iter__(self):
        return self.epoch(0)

    def __len__(self):
        return -(-self.showings // self.batch_size)

    def epoch(self, number: int, start: int = 0, *, resolution: int | None = None):
        """Yields (images, labels) of epoch `number`, from batch `start` on; always the same ones. resolution: of the
        images, where it is another than before.

        `bad.replaced` counts the showings that were replaced, up to the last batch that was yielded."""
        if resolution is not None:
            self.decoder.resolution = resolution
        draw_ids = self.of_epoch(number)[start * self.batch_size :]
        self.bad.begin(len(draw_ids))
        if len(draw_ids) == 0:
            return
        iterator = _Iterator(self, draw_ids)
        try:
            for place, (images, labels) in enumerate(iterator):
                self.bad.seen(place)
                yield images, labels[:, 0]
        finally:
            iterator.close()


def worker_count(workers: int | str) -> int:
    """Decoding threads of this process: `auto` shares the cores among the processes of this machine."""
    cores = len(os.sched_getaffinity(0))
    if workers == "auto":
        return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return min(workers, cores)


def plan_of(stage) -> TransformParams:
    """What happens to a training sample of this stage. Raises UserError where rand_config cannot be read."""
    return TransformParams(
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
    path, num_samples, stage, *, seed, rank=0, world=1, workers="auto", device=None, cache="os", shuffle_pages=None,
    bad_limit=None,
) -> Loader:  # fmt: skip
    """Training batches of this rank: `stage` names crop, augmentation, repeats, global batch and mixing chunk.

    path: a .beton, or a pattern of shards. shuffle_pages: None, or how many of the file's pages are shuffled together
    (order.py). bad_limit: None, or which share of the showings may be replaced (bad.py).

    Raises UserError when the data set is smaller than one batch or the batch does not divide among the ranks.
    """
    if stage.batch % world:
        raise UserError(f"stage {stage.name}: batch {stage.batch} does not divide among {world} processes")
    mixed = stage.mixup > 0 or stage.cutmix > 0
    if mixed and stage.batch // world % 2:
        raise UserError(f"stage {stage.name}: mixing needs an even batch per process, not {stage.batch} / {world}")
    steps = order.epoch_length(num_samples, repeats=stage.repeats) // stage.batch
    if steps == 0:
        raise UserError(
            f"{path}: {num_samples} images do not fill one batch of {stage.batch}"
            f" (stage {stage.name}, {stage.repeats} repeats); try {order.smaller_batch(stage, num_samples)} and a lower"
            " --stage.lr"
        )
    index, chunk = _index(path, num_samples), stage.mix_chunk if mixed else 1
    windows = None
    if shuffle_pages is not None:
        windows = order.Windows(pages_of(column(index, "image"), index.page_size), shuffle_pages)

    def of_epoch(epoch):
        ids = order.showings(num_samples, seed=seed, epoch=epoch, repeats=stage.repeats, windows=windows)
        global_order = order.arrange(ids, batch=stage.batch, chunk=chunk)
        return order.rank_share(global_order, batch=stage.batch, rank=rank, world=world)

    decoder = ImageDecoder(plan=plan_of(stage), resolution=stage.resolution, seed=seed, workers=worker_count(workers))
    return Loader(
        index, decoder=decoder, of_epoch=of_epoch, showings=steps * stage.batch // world, batch=stage.batch // world,
        device=device or torch.device("cpu"), cache=cache, bad=CorruptSamples(index, seed=seed, limit=bad_limit),
    )  # fmt: skip


def eval_loader(path, num_samples, stage, *, batch, rank=0, world=1, workers="auto", device=None, cache="os") -> Loader:
    """Each image once over all ranks: shortest side to eval_side / eval_crop, centre crop, nothing random. A bad sample
    always stops it: what counts every image once cannot replace one."""
    index = _index(path, num_samples)
    plan = TransformParams(
        crop=crops.CENTRE, ratio=float(stage.eval_crop), interpolation=resample.NAMES[stage.interpolation]
    )
    decoder = ImageDecoder(plan=plan, resolution=stage.eval_side, seed=0, workers=worker_count(workers))
    share = order.evaluation_share(num_samples, rank=rank, world=world)
    return Loader(
        index, decoder=decoder, of_epoch=lambda epoch: share, showings=len(share), batch=batch,
        device=device or torch.device("cpu"), cache=cache, bad=CorruptSamples(index, seed=0, limit=None),
    )  # fmt: skip


def _index(path, num_samples) -> Index:
    """The index of a data set that was found to hold so many samples."""
    index = open_index(path)
    if len(index.metadata) != num_samples:
        raise UserError(f"{path}: holds {len(index.metadata)} samples, no longer {num_samples}; start again")
    return index
