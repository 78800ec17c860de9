"""All that is taken from FFCV.

FFCV makes a `numba.typed.Dict` of two numbers while it is imported, for which Numba compiles 53 functions: 5 s of
processor time in every process. It reads the dictionary in Python only, so a plain one does; `numba.typed.Dict` is
Numba's own again when the import is done. This works where this module is the first in a process to import FFCV.
The import also leaves torch with one thread; here it gets back those that it had.

FFCV starts Numba's threads while it is imported, and before each epoch. Nothing of ours uses them, and a process with
one core may never end: Numba's TBB layer then waits for a task that no thread is left to do. So they are started for
FFCV's own loaders only.
"""

# ruff: noqa: F401  what is imported here is for the others

import threading

import numba.typed
import numpy as np
import torch

_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
_set_num_threads, numba.set_num_threads = numba.set_num_threads, lambda count: None
_threads = torch.get_num_threads()
try:
    from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField, TorchTensorField
    from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers import OSCacheManager
    from ffcv.memory_managers.base import MemoryContext, MemoryManager
    from ffcv.pipeline import PipelineSpec, compiler
    from ffcv.pipeline.allocation_query import AllocationQuery, allocate_query
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.operation import Operation
    from ffcv.transforms import ToDevice, ToTensor
    from ffcv.types import (
        ALLOC_TABLE_TYPE,
        CURRENT_VERSION,
        TYPE_ID_HANDLER,
        FieldDescType,
        HeaderType,
        get_handlers,
        get_metadata_type,
    )
    from ffcv.utils import decode_null_terminated_string
finally:
    numba.typed.Dict = _typed_dict
    numba.set_num_threads = _set_num_threads
    torch.set_num_threads(_threads)


def _compile_reader(manager):
    """What FFCV's loader reads stored bytes with, compiled for what it is given. FFCV names types instead, and for that
    makes Numba's one type of byte arrays read-only: kernels that anyone compiled before with it are lost."""

    def read(address, state):
        data, places, sizes = state
        return data[address : address + sizes[np.searchsorted(places, address)]]

    return Compiler.compile(read)


def _set_threads_of_ffcv(count):
    """Numba's `set_num_threads`, but for threads whose attribute `uses_numba_threads` is False."""
    if getattr(threading.current_thread(), "uses_numba_threads", True):
        numba.set_num_threads(count)


OSCacheManager.compile_reader = _compile_reader
compiler.set_num_threads = _set_threads_of_ffcv
