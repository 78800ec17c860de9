"""References: the rates of the official loop, to their printed digits, timm's scheduler, and NumPy's interpolation as
FFCV's ImageNet recipes use it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler

from config.schedule import learning_rate, resolution

OFFICIAL = {"schedule": "epoch", "min_lr": 1e-5, "warmup_epochs": 5, "warmup_lr": 1e-6}
PER_EPOCH = 625  # steps: 1,280,000 samples in batches of 2,048


def timm_rates(times, *, length, lr, min_lr, warmup_lr, warmup, prefix):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = CosineLRScheduler(
        optimizer, length, lr_min=min_lr, warmup_t=warmup, warmup_lr_init=warmup_lr, warmup_prefix=prefix
    )
    rates = []
    for time in times:
        scheduler.step(time)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(
    ("epochs", "lr", "table"),
    [
        (800, 4e-3, "0:1e-6 1:1e-6 2:8.008e-4 3:1.601e-3 5:3.2e-3 6:4.0e-3 400:2.013e-3 799:1.006e-5"),
        (800, 3e-3, "0:1e-6 1:1e-6 2:6.008e-4 3:1.201e-3 5:2.4e-3 6:3.0e-3 400:1.511e-3 799:1.005e-5"),
        (400, 3e-3, "0:1e-6 1:1e-6 2:6.008e-4 3:1.201e-3 5:2.4e-3 6:2.999e-3 200:1.517e-3 399:1.018e-5"),
        (20, 1e-5, "0:1e-6 1:1e-6 2:2.8e-6 3:4.6e-6 5:8.2e-6 6:1e-5 10:1e-5 19:1e-5"),
        (50, 3e-4, "0:1e-6 1:1e-6 2:6.08e-5 3:1.206e-4 5:2.402e-4 6:2.929e-4 25:1.641e-4 49:1.114e-5"),
    ],
)
def test_official_rate_of_each_epoch(epochs, lr, table):
    for cell in table.split():
        epoch, printed = cell.split(":")
        digits = len(printed.partition("e")[0].partition(".")[2])
        for step in (int(epoch) * PER_EPOCH, (int(epoch) + 1) * PER_EPOCH - 1):
            rate = learning_rate(SimpleNamespace(epochs=epochs, lr=lr, **OFFICIAL), step, PER_EPOCH)
            assert float(f"{rate:.{digits}e}") == float(printed), f"epoch {epoch}"


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 5), (30, 0), (7, 7), (3, 5), (1, 0), (1, 1), (1, 5)])
def test_epoch_schedule_is_timms_one_epoch_late(epochs, warmup):
    law = {"lr": 2e-3, "min_lr": 3e-5, "warmup_lr": 1e-6}
    expected = timm_rates([max(e - 1, 0) for e in range(epochs)], length=epochs, warmup=warmup, prefix=False, **law)
    stage = SimpleNamespace(schedule="epoch", epochs=epochs, warmup_epochs=warmup, **law)
    rates = [learning_rate(stage, 4 * e + 3, 4) for e in range(epochs)]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 5), (30, 0), (2, 1), (1, 0)])
def test_step_schedule_is_timms_with_warmup_before_the_cosine(epochs, warmup):
    law, per_epoch = {"lr": 2e-3, "min_lr": 3e-5, "warmup_lr": 1e-6}, 11
    steps = range(epochs * per_epoch + 1)
    expected = timm_rates(steps, length=(epochs - warmup) * per_epoch, warmup=warmup * per_epoch, prefix=True, **law)
    stage = SimpleNamespace(schedule="step", epochs=epochs, warmup_epochs=warmup, **law)
    rates = [learning_rate(stage, step, per_epoch) for step in steps]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[warmup * per_epoch] == law["lr"] == max(rates)
    assert rates[-1] == law["min_lr"]


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 1), (2, 5)])
def test_step_schedule_may_end_inside_its_warmup(epochs, warmup):
    law = {"lr": 1.0, "min_lr": 0.1, "warmup_lr": 0.5}
    stage = SimpleNamespace(schedule="step", epochs=epochs, warmup_epochs=warmup, **law)
    rates = [learning_rate(stage, step, 10) for step in range(10 * epochs)]
    assert rates == pytest.approx([0.5 + 0.5 * s / (10 * warmup) for s in range(10 * epochs)])


@pytest.mark.parametrize(("epochs", "peak"), [(16, 2), (5, 0), (3, 3)])
def test_linear_schedule_is_ffcvs(epochs, peak):
    """FFCV interpolates within each epoch between the rates at its ends; the knots are whole epochs."""
    law = {"lr": 1.7, "min_lr": 0.0, "warmup_epochs": peak, "warmup_lr": 1.7e-4}
    knots = ([0, peak, epochs], [1.7e-4, 1.7, 0]) if peak else ([0, epochs], [1.7, 0])
    of_epoch = np.interp(np.arange(epochs + 1), *knots)
    expected = np.concatenate([np.interp(np.arange(7), [0, 7], of_epoch[e : e + 2]) for e in range(epochs)])
    if peak == epochs:
        expected = np.linspace(1.7e-4, 1.7, 7 * epochs, endpoint=False)
    stage = SimpleNamespace(schedule="linear", epochs=epochs, **law)
    rates = [learning_rate(stage, step, 7) for step in range(7 * epochs)]
    assert rates == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("ramp", [(160, 11, 13), (160, 65, 76), (128, 0, 9), (96, 4, 4), (192, 2, 5)])
def test_the_ramp_is_ffcvs(ramp):
    low, begins, ends = ramp
    stage = SimpleNamespace(resolution=192, ramp=ramp)
    for epoch in range(100):
        line = np.interp(epoch, [begins, ends], [low, 192]) if begins < ends else (192 if epoch >= ends else low)
        expected = int(np.round(line / 32)) * 32
        assert resolution(stage, epoch) == expected, epoch
    assert resolution(stage, 0) == low
    assert resolution(stage, ends) == 192
    assert resolution(SimpleNamespace(resolution=224, ramp=None), 0) == 224
