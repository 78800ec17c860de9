"""Who takes a step: prepare(images, labels) once, then called with what it gave."""

import torch

from bench.step.ours import OurStep
from bench.step.reference import ReferenceStep
from bench.step.tasks import Task, job_of
from bench.step.timm_compiled import TimmStep


def contender(name: str, task: Task, *, compiles: bool, device: torch.device, mark):
    law, precision = ("subset" if name.startswith("ours") else "exact"), ("bf16" if name == "ours-bf16" else "auto")
    run = job_of(task, drop_path=law, compiles=compiles, device=device, precision=precision)
    kinds = {"reference": ReferenceStep, "timm-compiled": TimmStep}
    return kinds.get(name, OurStep)(run, run.recipe.stages[0], device=device, mark=mark)
