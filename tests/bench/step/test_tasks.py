"""The benchmark's jobs."""

import torch

from bench.step.tasks import QUICK, job_of
from training import distributed

CPU = torch.device("cpu")


def test_ranks_are_one():
    """The benchmark's job is that of one process, whatever the environment says."""
    job = job_of(QUICK, drop_path="subset", compiles=False, device=CPU)
    assert job.ranks == distributed.Ranks(0, 0, 1, CPU)
    assert job.run.stages[0].batch == job.share(job.run.stages[0]) == 16
