"""Batches that FFCV's thread decodes ahead, epoch by epoch: stock FFCV's loader, where it waits, hears and ends.

An error in FFCV's thread, which stock FFCV swallows and then waits for ever, is raised in the loop. On a GPU a batch
stays in the host's memory until it has been copied, however far the loop is ahead of the device, and the next epoch
gets the same memory.
"""

from collections import namedtuple
from collections.abc import Callable
from queue import Empty
from typing import NamedTuple

import numpy as np
import torch

from ffcv_ops.corrupt_samples import CorruptSamples
from ffcv_ops.decoders import ImageDecoder, SampleError
from ffcv_ops.errors import UserError
from ffcv_ops.fields import FieldDecoder
from ffcv_ops.stock import (
    Compiler,
    EpochIterator,
    Graph,
    PipelineSpec,
    RGBImageField,
    ToDevice,
    ToTensor,
    allocate_query,
)
from ffcv_ops.stock import Loader as FFCVLoader
from ffcv_ops.storage.index import Index, levels_of
from ffcv_ops.storage.reading import Files, Pages


class Order(NamedTuple):
    """What this process loads of an epoch."""

    sample_ids: Callable[[int], np.ndarray]  # of an epoch's number: int64 [length]
    length: int
    batch_size: int


class _Graph(Graph):
    """FFCV's graph of operations. Pinned memory goes from one epoch to the next: to pin 2 GiB takes about a second."""

    def __init__(self, *given):
        super().__init__(*given)
        self.spare = {}  # pinned memory that no epoch uses, by the operation and what it asked for

    def allocate_memory(self, batch_size, slots):
        wanted, _ = self.collect_requirements()
        queries = {node: query for node, query in wanted["operation"].items() if query is not None}
        spare, self.spare = self.spare, {}  # what does not fit any more, after a change of the resolution, is freed
        memory = dict.fromkeys(wanted["operation"])
        for node, query in queries.items():
            found = spare.get((node, query))
            memory[node] = allocate_query(query, batch_size, slots) if found is None else found
        return {"operation": memory, "shared": dict.fromkeys(wanted["shared"]), "queries": queries}

    def give_back(self, memory):
        """Keeps an epoch's memory of the host. (A device's own memory is kept by torch.)"""
        queries = memory["queries"].items()
        self.spare = {(node, query): memory["operation"][node] for node, query in queries if query.device is None}


class _Iterator(EpochIterator):
    """FFCV's producer thread; keeps what went wrong, and can be stopped from outside."""

    failure: BaseException | None = None
    uses_numba_threads = False

    def __init__(self, loader, order):
        self.torch_threads = torch.get_num_threads()
        super().__init__(loader, order)

    def run_pipeline(self, b_ix, batch_indices, batch_slot, cuda_event):
        """A batch, decoded again with replacements where samples are corrupt, out of files that have not changed."""
        if b_ix == 0:  # FFCV has given torch as many threads as decode; the loop's are none of a loader's business
            torch.set_num_threads(self.torch_threads)
        if self.loader.on_gpu:
            # FFCV's event makes the device wait before it writes this slot's memory on the device again. That in the
            # host our threads write at once: the slot's last batch must have been copied. Its stream holds that only.
            self.cuda_streams[batch_slot].synchronize()
        while True:
            try:
                result = super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)
            except SampleError as error:
                self.memory_context.check()
                batch_indices = self.loader.corrupt_samples.replace(b_ix, batch_indices, error)
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
        if self.loader.on_gpu and not self.closed:  # copies that nobody waits for still use the memory
            for copies in self.cuda_streams:
                copies.synchronize()
            self.loader.graph.give_back(self.memory_allocations)
        super().close()
        self.closed = True


class Loader(FFCVLoader):
    """Stock FFCV's loader with epochs by number, of whose samples it reads `fields`; one of them is `image`.

    The constructor does what FFCV's does, part by part, with our index and memory managers and without its global seed.
    """

    def __init__(self, index: Index, decoder: ImageDecoder, order: Order, corrupt_samples: CorruptSamples, *,
                 device: torch.device, cache: str, fields: tuple[str, ...]):  # fmt: skip
        self.reader, self.decoder, self.corrupt_samples = index, decoder, corrupt_samples
        self.sample_ids, self.length, self.batch_size = order
        self.batches_ahead, self.num_workers, self.on_gpu = 3, decoder.workers, device.type == "cuda"
        levels = levels_of(index) if decoder.params.min_oversampling > 0 else ("image",)
        if cache == "process" and len(levels) > 1:
            raise UserError(
                f"{index.path}: cache=process would hold nearly all of a file with levels {', '.join(levels)} in"
                " memory; set cache=os, or min_oversampling=none"
            )
        decoder.reads(index, levels)
        self.memory_manager = Files(index) if cache == "os" else Pages(index)
        upload = [ToDevice(device, non_blocking=True)] if self.on_gpu else []
        self.batch = namedtuple("Batch", fields, rename=True)
        self.decoders, self.pipeline_specs = [decoder], {}
        for name in fields:
            operation = decoder
            if name != "image" and isinstance(index.handlers[name], RGBImageField):
                operation = decoder.of_another(index, name)
                self.decoders.append(operation)
            elif name != "image":
                operation = FieldDecoder(index, name)
            further = [ToTensor(), *upload] if getattr(operation, "is_tensor", True) else []
            self.pipeline_specs[name] = PipelineSpec(name, operation, further)
        numbers = {name: number for number, name in enumerate(index.handlers)}
        self.graph = _Graph(
            self.pipeline_specs, index.handlers, numbers, index.metadata, self.memory_manager.compile_reader()
        )
        Compiler.set_enabled(False)  # what FFCV would compile calls our own kernels, once per batch
        try:
            self.generate_code()
        finally:
            Compiler.set_enabled(True)

    def __len__(self):
        return -(-self.length // self.batch_size)

    def epoch(self, number: int, start: int = 0, *, resolution: int | None = None):
        """Yields the batches of epoch `number`, from batch `start` on; always the same ones. resolution: of the images,
        from this epoch on; None: as before.

        `corrupt_samples.replaced` counts the samples that were replaced, up to the last batch that was yielded."""
        if resolution is not None:
            for decoder in self.decoders:
                decoder.resolution = resolution
        sample_ids = self.sample_ids(number)[start * self.batch_size :]
        self.corrupt_samples.begin(len(sample_ids))
        if len(sample_ids) == 0:
            return
        iterator = _Iterator(self, sample_ids)
        try:
            for place, values in enumerate(iterator):
                self.corrupt_samples.yielded(place)
                yield self.batch(*values)
        finally:
            iterator.close()
