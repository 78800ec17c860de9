"""Times at the ends of phases."""

import time

import torch

PHASES = ("data", "forward", "backward", "optimizer")


class Clock:
    """Called at the end of each phase; a GPU's own times, which are read when all is done."""

    def __init__(self, device):
        self.gpu, self.marks = device.type == "cuda", []

    def __call__(self, phase):
        if self.gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((phase, moment))

    def phases(self) -> list[dict[str, float]]:
        """Seconds of each phase of each step, and of the whole `step`."""
        if self.gpu:
            torch.cuda.synchronize()
        steps = []
        for (_, before), (phase, after) in zip(self.marks, self.marks[1:], strict=False):
            if phase == "start":
                continue
            if phase == "data":
                steps.append({})
            steps[-1][phase] = before.elapsed_time(after) / 1000 if self.gpu else after - before
        return [{**step, "step": sum(step.values())} for step in steps]
