"""The benchmark's jobs."""

import torch

from bench.step.tasks import QUICK, job_of
from training import distributed

CPU = torch.device("cpu")


def test_ranks_are_one():
    """The benchmark's job is that of one process, whatever the environment says."""
    run = job_of(QUICK, drop_path="subset", compiles=False, device=CPU)
    assert run.ranks == distributed.Ranks(0, 0, 1, CPU)
    assert run.recipe.stages[0].batch == run.share(run.recipe.stages[0]) == 16
