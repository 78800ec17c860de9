"""What the steps between two log points were: sums that stay on the device until a log point reads them."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from training import distributed


@dataclasses.dataclass(frozen=True)
class StepStats:
    """Sums over steps, to be read as means: of loss (nats) and gradient norm with the number of finite ones of each, of
    seconds, and of those waited for data; and how many steps were bad, that is, not finite."""

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    losses: int = 0
    norm: float = 0.0
    norms: int = 0
    bad: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: "StepStats") -> "StepStats":
        return StepStats(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def row(self) -> dict:
        """What a row of the log says; a mean of nothing is not a number."""
        seconds = max(self.seconds, 1e-9)
        return {
            "loss": self.loss / self.losses if self.losses else math.nan,
            "grad_norm": self.norm / self.norms if self.norms else math.nan,
            "images_per_s": self.images / seconds,
            "wait": self.waited / seconds,
            "seconds": self.seconds,
            "bad_steps": self.bad,
        }


class LogPoint(NamedTuple):
    """What the steps between two log points were."""

    stats: StepStats
    first_bad: tuple[int, float, float] | None  # step, loss, gradient norm
    bad_in_a_row: int  # at most, also counting those before the last log point
    stop: object  # what the run was asked to stop by, or None
    save: bool  # whether the first rank finds a checkpoint due


class Meter:
    """Sums between two log points. They stay on the device until they are read; times are the host's."""

    def __init__(self, device: torch.device):
        self.bad_now = torch.zeros((), device=device)  # bad steps in a row up to now
        self.step_done = torch.cuda.Event() if device.type == "cuda" else None
        self.begin()

    def begin(self) -> None:
        """Sums from here on."""
        # of loss and gradient norm, where they are finite; in float64, so that it does not matter where a run stopped
        self.sums = self.bad_now.new_zeros(2, dtype=torch.float64)
        self.counts = self.bad_now.new_zeros(2)
        self.bad, self.longest = self.bad_now.new_zeros(()), self.bad_now.new_zeros(())
        self.first_bad = self.bad_now.new_zeros(3)  # number of the step from 1 here, loss, gradient norm
        self.steps = self.images = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def timed(self, batches: Iterable) -> Iterator:
        """The batches. Time spent waiting for one counts where the device had nothing to do when it came: on a GPU the
        host runs ahead, and then waits in the loader for the device, not for data."""
        batches = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if self.step_done is None or self.step_done.query():
                self.waited += time.perf_counter() - began
            yield batch

    def add(self, loss: Tensor, grad_norm: Tensor, bad: Tensor, images: int) -> None:
        """One optimizer step: this rank's loss, the gradient norm and whether the step was bad (scalars on the device),
        and the images of all ranks."""
        self.steps, self.images = self.steps + 1, self.images + images
        values = torch.stack([loss, grad_norm])
        good = values.isfinite() & (bad == 0)
        self.sums += torch.where(good, values, 0.0)
        self.counts += good
        found = torch.cat([torch.full_like(values[:1], self.steps), values])
        self.first_bad = torch.where((bad > 0) & (self.bad == 0), found, self.first_bad)
        self.bad = self.bad + bad
        self.bad_now = (self.bad_now + bad) * bad
        self.longest = torch.maximum(self.longest, self.bad_now)
        if self.step_done is not None:
            self.step_done.record()

    def read(self, *, stop=None, save: bool = False) -> LogPoint:
        """Sums over steps, of loss and norm means over ranks; what follows is summed anew. This waits for the device
        and for the other ranks. stop: the same in all ranks. save: whether this rank wants a checkpoint; only the main
        one may."""
        ends = torch.cat([(self.bad > 0)[None], self.bad.new_tensor([float(save), 1.0])])
        values = torch.cat([self.sums, self.counts, torch.stack([self.bad, self.longest]), self.first_bad, ends])
        summed = distributed.all_reduce_sum(values.double()).tolist()
        *good, bad, longest, number, bad_loss, bad_norm, ranks_with_bad, save, ranks = summed
        loss, norm, losses, norms = (value / ranks for value in good)
        seconds, ranks_with_bad = time.perf_counter() - self.began, max(ranks_with_bad, 1.0)
        stats = StepStats(
            self.steps, self.images, loss, losses, norm, norms, round(bad / ranks_with_bad), seconds, self.waited
        )
        first_bad = (round(number / ranks_with_bad), bad_loss / ranks_with_bad, bad_norm / ranks_with_bad)
        self.begin()
        return LogPoint(stats, first_bad if bad else None, round(longest / ranks_with_bad), stop, save > 0)
