"""The loaders that bench/loader.py compares, a file each: ours, the baselines, and upper bounds. In common:

`prepare(task, data, batch=, workers=)` builds the loader and returns `epoch`. `epoch(batches)` returns an iterator
over exactly that many batches, as uint8 arrays or tensors in memory, not normalised; each is valid until the next is
asked for. No work is done before the first one is asked for or after the last one: what is timed is the work for these
batches, all of it, and whoever is next has the machine for itself.
"""

import importlib
from functools import partial

from bench.tasks import DECODE, Task


class Unavailable(Exception):
    """This loader cannot take part, or not in this task. The message says why."""


LESS = {"min_oversampling": 1.2}  # what docs/data.md recommends

LOADERS = {  # name: module of this package, settings
    "ours": ("ours", {"beton": "ours_jpg"}),
    "ours-libjpeg": ("ours", {"beton": "ours_jpg", "decoder": "libjpeg"}),
    "ours-library": ("ours", {"beton": "ours_jpg", "library": True}),
    "ours-fast": ("ours", {"beton": "ours_jpg", "keys": LESS}),
    "ours-pyramid": ("ours", {"beton": "ours_pyramid", "keys": LESS}),
    "ours-raw": ("ours", {"beton": "ours_raw"}),
    "ours-in-ffcv": ("stock_ffcv", {"beton": "ffcv_jpg", "operations": "ours"}),
    "ffcv": ("stock_ffcv", {"beton": "ffcv_jpg"}),
    "ffcv-tuned": ("stock_ffcv", {"beton": "ffcv_jpg", "operations": "tuned"}),
    "ffcv-torchvision": ("stock_ffcv", {"beton": "ffcv_jpg", "operations": "torchvision"}),
    "ffcv-raw": ("stock_ffcv", {"beton": "ffcv_raw"}),
    "torchvision-v2": ("torchvision_v2", {}),
    "torchcodec": ("torchvision_v2", {"torchcodec": True}),
    "pillow": ("reference_pillow", {}),
    "timm": ("timm_loader", {}),
    "spdl": ("spdl_ffmpeg", {}),
    "dali": ("dali", {}),
    "bound-decode": ("upper_bounds", {}),
    "bound-fast-dct": ("upper_bounds", {"fast_dct": True}),
    "bound-half": ("upper_bounds", {"scale": 2}),
    "bound-quarter": ("upper_bounds", {"scale": 4}),
    "bound-eighth": ("upper_bounds", {"scale": 8}),
}


def prepare_of(name: str):
    """The `prepare` function of a loader."""
    module, settings = LOADERS[name]
    return partial(importlib.import_module(f"bench.loaders.{module}").prepare, **settings)


def is_upper_bound(name: str) -> bool:
    return name.startswith("bound-")


def takes_part(name: str, task: Task) -> bool:
    """Whether this loader has anything to do in a task."""
    if name == "ffcv-tuned":
        return task.augment == "three"  # elsewhere it is ffcv
    if name == "ffcv-torchvision":
        return task.augment != "none"
    if name == "spdl" and task.augment != "none":
        return False
    if task.augment in ("rand", "auto", "trivial") and (name.startswith("ffcv") or name == "dali"):
        return False  # they have none of these
    if task.augment == "trivial" and name == "timm":
        return False
    if name == "bound-decode":
        return True  # to compare with in the same minute
    return is_upper_bound(name) == (task is DECODE)


def is_baseline(name: str) -> bool:
    """What `ours` is compared with: it reads JPEGs, as files or from a .beton."""
    return not name.startswith(("ours", "bound-")) and name != "ffcv-raw"
