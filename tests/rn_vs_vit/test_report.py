"""Tables, verdicts and intervals of made-up results, against SciPy's paired t-test."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from rn_vs_vit import report

ROWS, CHOICES = ("ViT", "ResNet"), ("3-Augment", "RandAugment", "none")


def made(seeds, missing=()):
    values = np.random.default_rng(0).normal(70, 2, (2, 3, len(seeds)))
    wanted = SimpleNamespace(
        axes=("network", "augmentation"), rows=ROWS, choices=CHOICES, seeds=seeds, folder=Path("x")
    )
    results = {
        (net, augment, seed): {"val": values[n, a, s], "seconds": 100.0 * (a + 1) + s}
        for n, net in enumerate(ROWS) for a, augment in enumerate(CHOICES) for s, seed in enumerate(seeds)
        if (net, augment, seed) not in missing
    }  # fmt: skip
    return wanted, results, values


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2), tuple(range(7))])
def test_intervals_are_those_of_scipys_paired_t_test(seeds):
    wanted, results, values = made(seeds)
    for n, network in enumerate(ROWS):
        for a, other in enumerate(CHOICES[1:], start=1):
            of = report.interval(report.differences(wanted, results, network, other))
            low, high = ttest_rel(values[n, 0], values[n, a]).confidence_interval(0.95)
            assert (of.mean - of.half, of.mean + of.half) == pytest.approx((low, high))
            assert of.n == len(seeds)


def test_verdicts_say_what_the_test_says():
    wanted, results, values = made((0, 1, 2, 3))
    lines = report.verdicts(wanted, results)
    assert len(lines) == 6
    gaps = values[:, 0] - values[:, 1]
    for line, name, gap in zip(lines, (*ROWS, "ViT minus ResNet"), (*gaps, gaps[0] - gaps[1]), strict=False):
        assert line.startswith(name)
        test = ttest_1samp(gap, 0)
        half = test.confidence_interval(0.95).high - gap.mean()
        assert f"= {gap.mean():+.1f} ± {half:.1f} (4 seeds; " in line
        assert ("the interval holds 0" in line) == (test.pvalue >= 0.05)


def test_only_seeds_that_both_have_are_paired():
    missing = {("ViT", "RandAugment", 6), ("ViT", "none", 5), ("ViT", "none", 6)}
    wanted, results, values = made((5, 6, 7), missing)
    expected = (values[0, 0] - values[0, 1])[[0, 2]]
    assert report.differences(wanted, results, "ViT", "RandAugment") == pytest.approx(expected)
    lines = report.verdicts(wanted, results)
    assert "(one seed: no interval)" in next(line for line in lines if line.startswith("ViT: 3-Augment minus none"))
    assert sum("in that difference" in line for line in lines) == 0
    assert report.interval([1.0]).half == math.inf


def test_the_table_holds_mean_and_spread_and_only_the_sets_that_are_there():
    wanted, results, values = made((0, 1, 2))
    text = report.table(wanted, results)
    assert "ReaL" not in text
    mean = f"{values[1, 2].mean():.1f} (sd {values[1, 2].std(ddof=1):.1f})"
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")][4:6] == [mean, "301.0 (sd 1.0)"]
    results["ViT", "none", 1]["ReaL"] = 12.0
    assert "top-1 % on ReaL" in report.table(wanted, results)


def test_the_plot_has_a_panel_for_each_row_with_results_and_one_for_what_two_seeds_tell():
    wanted, results, _ = made((0, 1, 2), missing={("ResNet", "none", 0)})
    *panels, last = report.plot(wanted, results).axes
    assert [panel.get_title() for panel in (*panels, last)] == ["ViT", "ResNet", "3-Augment minus the other"]
    assert len(last.containers) == 2
    one, other = (high - low for low, high in (panel.get_xlim() for panel in panels))
    assert one == pytest.approx(other), "a point is as long in one panel as in the other"
    begun = {("ViT", "3-Augment", 0): {"val": 70.0}, ("ViT", "none", 0): {"val": 69.0}}
    (panel,) = report.plot(wanted, begun).axes
    assert [line.get_marker() for line in panel.lines if len(line.get_xdata())] == ["o", "o"], "no mean over a dot"
    assert report.plot(wanted, {}).axes == []


def test_top1_stands_against_the_seconds_of_training():
    wanted, results, values = made((0, 1, 2))
    (panel,) = report.plot_seconds(wanted, results).axes
    dots, cross = panel.lines[6], panel.lines[7]  # ResNet's first
    assert dots.get_xydata() == pytest.approx(np.stack(([100, 101, 102], values[1, 0]), axis=1))
    assert cross.get_xydata() == pytest.approx(np.array([[101, values[1, 0].mean()]]))
    assert report.plot_seconds(wanted, {}).axes[0].lines[:] == []
