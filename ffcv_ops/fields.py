"""FFCV's fields beside the images, as operations of a loader: a batch's sample ids -> numbers, arrays, bytes, JSON.

IntField, FloatField              tensor int64 or float64 [batch]
NDArrayField, TorchTensorField    tensor of the field's type [batch, *shape]
BytesField, JSONField             list of bytes, or of what was written
"""

import ctypes
import json
import os
from dataclasses import replace

import numpy as np
import torch
from xxhash import xxh64_intdigest

from ffcv_ops.decoders import SampleError
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.stock import AllocationQuery, FloatField, IntField, JSONField, NDArrayField, Operation
from ffcv_ops.storage.index import Index, column, pointers_of
from ffcv_ops.storage.reading import IN_MEMORY
from ffcv_ops.stored_images import CHANGED, UNREAD


class FieldDecoder(Operation):
    """The field `name` of each sample id's sample. UserError where the file's entries of it contradict its tables."""

    def __init__(self, index: Index, name: str):
        super().__init__()
        self.index, self.name, self.handler = index, name, index.handlers[name]
        self.is_tensor = isinstance(self.handler, IntField | FloatField | NDArrayField)
        self.shape = tuple(map(int, getattr(self.handler, "shape", ())))
        self.dtype = getattr(self.handler, "dtype", np.dtype(self.handler.metadata_type))
        self.places = pointers_of(self.handler, column(index, name))
        if self.places is not None:
            self._check()
        if self.is_tensor:
            try:
                torch.from_numpy(np.empty(0, self.dtype))
            except TypeError:
                raise UserError(
                    f"{self._place}: torch has no tensors of {self.dtype}; leave it out of `fields`"
                ) from None

    @property
    def _place(self):
        return f"{self.index.path}: field {one_line(self.name)}"

    def _check(self):
        """Every value must be one stored piece of the field's size."""
        piece = np.minimum(np.searchsorted(self.index.places, self.places), len(self.index.places) - 1)
        entries = column(self.index, self.name)
        size = np.prod(self.shape, dtype=int) * self.dtype.itemsize if self.is_tensor else entries["size"]
        self.sizes, self.pieces = np.broadcast_to(size, len(entries)), piece
        wrong = (self.index.places[piece] != self.places) | (self.index.sizes[piece] != size)
        if bad := np.flatnonzero(wrong & (self.sizes > 0)).tolist():
            raise UserError(
                f"{self._place}: {len(bad)} entries are damaged, the first is sample {bad[0]}; write it again"
            )

    def declare_state_and_memory(self, previous_state):
        memory = AllocationQuery(self.shape, self.dtype) if self.is_tensor else None
        return replace(previous_state, jit_mode=True, shape=self.shape, dtype=self.dtype), memory

    def generate_code(self):
        def numbers(sample_ids, out, metadata, storage):
            out[: len(sample_ids)] = metadata[sample_ids % len(metadata)]
            return out[: len(sample_ids)]

        def arrays(sample_ids, out, metadata, storage):
            for place, data in enumerate(self._stored(sample_ids % len(metadata), storage)):
                out[place] = np.frombuffer(data, self.dtype).reshape(self.shape)
            return out[: len(sample_ids)]

        def blobs(sample_ids, out, metadata, storage):
            stored = self._stored(sample_ids % len(metadata), storage)
            if isinstance(self.handler, JSONField):
                return [json.loads(data.rstrip(b"\0")) for data in stored]
            return stored

        return numbers if self.places is None else arrays if self.is_tensor else blobs

    def _stored(self, samples, storage) -> list[bytes]:
        """The stored bytes of these samples, held against their checksums; SampleError."""
        files, places = self.memory_read(self.places[samples], storage)
        sizes, pieces = self.sizes[samples], self.pieces[samples]
        found = [_read(*one) for one in zip(files.tolist(), places.tolist(), sizes.tolist(), strict=True)]
        faults = np.array([UNREAD if len(data) < size else 0 for data, size in zip(found, sizes, strict=True)])
        if self.index.checksums is not None:
            digests = np.array([xxh64_intdigest(data) for data in found], np.uint64)
            faults[(digests != self.index.checksums[pieces]) & (sizes > 0) & (faults == 0)] = CHANGED
        if faults.any():
            raise SampleError(np.flatnonzero(faults), faults[faults > 0])
        return found


def _read(file: int, place: int, size: int) -> bytes:
    """As `reading.fetch`; shorter where it cannot be read."""
    if file == IN_MEMORY:
        return ctypes.string_at(place, size)
    try:
        return os.pread(file, size, place)
    except OSError:
        return b""
