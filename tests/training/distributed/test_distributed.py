"""How many threads a process takes."""

import os

import pytest

from training import distributed


@pytest.mark.parametrize("given, processes, expected", [("3", "2", 3), ("", "2", 4), ("0", "16", 1), ("x", "1", 8)])
def test_threads_are_what_was_asked_for_or_a_share_of_the_cores(given, processes, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert distributed.threads() == expected
