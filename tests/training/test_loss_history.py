"""Spikes of the loss, against curves that have none."""

import math
import random

import pytest

from training.loss_history import LossHistory


def spikes_in(losses):
    history = LossHistory()
    return [k for k, loss in enumerate(losses) if history.usual_if_spike(loss) is not None]


def learning(seed, *, noise, count=400, start=7.0, end=2.5, tau=60):
    """A loss that falls as a run's does, with Gaussian noise of a share `noise`."""
    draw = random.Random(seed)
    return [(end + (start - end) * math.exp(-k / tau)) * (1 + draw.gauss(0, noise)) for k in range(count)]


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01, 0.03, 0.1])
def test_a_run_that_learns_has_no_spikes(noise):
    for seed in range(10):
        assert spikes_in(learning(seed, noise=noise)) == []
        assert spikes_in(learning(seed, noise=noise, end=0.004, start=0.05)) == [], "binary cross-entropy"


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01, 0.03])
@pytest.mark.parametrize("place", [10, 150, 399])
def test_a_spike_is_found_and_nothing_else(noise, place):
    losses = learning(1, noise=noise)
    losses[place] *= 2.5 if place == 10 else 1.6
    assert spikes_in(losses) == [place]


def test_a_run_that_stays_high_is_reported_until_it_is_the_usual():
    losses = [2.0] * 100 + [3.0] * 100
    found = spikes_in(losses)
    assert found == list(range(100, 111))
    history = LossHistory()
    assert [history.usual_if_spike(loss) for loss in losses[:101]][-1] == 2.0
