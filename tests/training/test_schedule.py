"""References: the rates of the official loop, to their printed digits, and timm's scheduler."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from training.schedule import learning_rate

OFFICIAL = {"min_lr": 1e-5, "warmup_epochs": 5, "warmup_lr": 1e-6}
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
            rate = learning_rate(step, steps_per_epoch=PER_EPOCH, epochs=epochs, lr=lr, schedule="epoch", **OFFICIAL)
            assert float(f"{rate:.{digits}e}") == float(printed), f"epoch {epoch}"


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 5), (30, 0), (7, 7), (3, 5), (1, 0), (1, 1), (1, 5)])
def test_epoch_schedule_is_timms_one_epoch_late(epochs, warmup):
    law = {"lr": 2e-3, "min_lr": 3e-5, "warmup_lr": 1e-6}
    expected = timm_rates(
        [max(e - 1, 0) for e in range(epochs)], length=epochs, warmup=warmup, prefix=False, **law
    )
    rates = [
        learning_rate(4 * e + 3, steps_per_epoch=4, epochs=epochs, warmup_epochs=warmup, schedule="epoch", **law)
        for e in range(epochs)
    ]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 5), (30, 0), (2, 1), (1, 0)])
def test_step_schedule_is_timms_with_warmup_before_the_cosine(epochs, warmup):
    law, per_epoch = {"lr": 2e-3, "min_lr": 3e-5, "warmup_lr": 1e-6}, 11
    steps = range(epochs * per_epoch + 1)
    expected = timm_rates(
        steps, length=(epochs - warmup) * per_epoch, warmup=warmup * per_epoch, prefix=True, **law
    )
    rates = [
        learning_rate(s, steps_per_epoch=per_epoch, epochs=epochs, warmup_epochs=warmup, schedule="step", **law)
        for s in steps
    ]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[warmup * per_epoch] == law["lr"] == max(rates)
    assert rates[-1] == law["min_lr"]


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 1), (2, 5)])
def test_step_schedule_may_end_inside_its_warmup(epochs, warmup):
    rates = [
        learning_rate(
            s, steps_per_epoch=10, epochs=epochs, lr=1.0, min_lr=0.1, warmup_epochs=warmup, warmup_lr=0.5,
            schedule="step",
        )
        for s in range(10 * epochs)
    ]
    assert rates == pytest.approx([0.5 + 0.5 * s / (10 * warmup) for s in range(10 * epochs)])
