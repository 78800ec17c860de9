"""What holds for a whole run: its recipe, this process among the others, its data sets, and where it writes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from config.recipe import Recipe, StageConfig
from ffcv_ops import mixing
from ffcv_ops.errors import UserError
from training.datasets import DataSet
from training.distributed import Ranks
from training.distributed.watchdog import Watchdog
from training.loading import Placement
from training.logging.run_log import RunLog
from training.saving.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """The first four are always there. A run that only evaluates or measures has no folder, no log and no watchdog."""

    recipe: Recipe
    ranks: Ranks
    datasets: dict[str, DataSet]  # by the word of `stage.data`
    precision: torch.dtype  # of the matrix products in forward and backward pass
    folder: RunFolder | None = None
    log: RunLog | None = None
    identity: dict | None = None  # what makes it the same run after a restart: run_identity.py
    watchdog: Watchdog | None = None
    stop_requested: Callable = lambda: None  # the signal that asks for an end, the same in all ranks, or None

    @property
    def placement(self) -> Placement:
        """Where this rank's loaders work."""
        data = self.recipe.data
        return Placement(self.ranks.rank, self.ranks.world, data.workers, self.ranks.device, data.cache)

    def local_batch_size(self, config: StageConfig) -> int:
        """This rank's samples of a batch."""
        return config.batch // self.ranks.world

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (n, height, width, 3) -> float32 (n, 3, height, width), as the model's weights expect it."""
        return mixing.normalize(images, self.recipe.model.mean, self.recipe.model.std)

    @contextmanager
    def autocast(self):
        """The context of a forward pass."""
        enabled, device = self.precision != torch.float32, self.ranks.device
        with attention(device), torch.autocast(device.type, dtype=self.precision if enabled else None, enabled=enabled):
            yield


def attention(device: torch.device) -> AbstractContextManager:
    """Which of its kernels for attention torch takes on a GPU: the first that can. Its own order changes between
    releases. cuDNN's is for Hopper and later, where it is faster than flash-2 (docs/performance.md)."""
    if device.type == "cpu":
        return nullcontext()
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if torch.backends.cuda.cudnn_sdp_enabled():  # not with speed.deterministic
        is_hopper = torch.cuda.get_device_capability(device) >= (9, 0)
        order.insert(0 if is_hopper else 1, SDPBackend.CUDNN_ATTENTION)
    return sdpa_kernel(order, set_priority=True)


def precision(word: str, device: torch.device) -> torch.dtype:
    """The type of the matrix products. `word`: speed.precision."""
    if word == "auto":
        word = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if word == "fp16" and device.type == "cpu":
        raise UserError("speed.precision fp16 needs a GPU (its gradients are scaled); use fp32 or bf16 on a CPU")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[word]
