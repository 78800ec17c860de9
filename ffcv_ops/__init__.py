"""From the bytes of a .beton file to batches: crops, resampling and augmentation, one pass per sample.

from ffcv_ops import train_loader, eval_loader, mixup_cutmix, write_beton      # docs/library.md
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ffcv_ops.errors import UserError
    from ffcv_ops.loader import Loader, eval_loader, train_loader
    from ffcv_ops.mixing import Mixing, mixup_cutmix
    from ffcv_ops.writer import write_beton

__version__ = "0.1.0"
__all__ = ["Loader", "Mixing", "UserError", "eval_loader", "mixup_cutmix", "train_loader", "write_beton"]

_MODULES = {
    "Loader": "loader",
    "Mixing": "mixing",
    "UserError": "errors",
    "eval_loader": "loader",
    "mixup_cutmix": "mixing",
    "train_loader": "loader",
    "write_beton": "writer",
}


def __getattr__(name):
    """Imported when it is asked for: a recipe is read by modules of this package that need neither torch nor FFCV."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ffcv_ops' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ffcv_ops.{_MODULES[name]}"), name)
