"""Confusions against scikit-learn's matrix; the stages' numbers by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from report import tables
from report.collect import collect
from training.evaluation.predictions import Predictions


@pytest.fixture
def made():
    random = np.random.default_rng(3)
    labels = random.integers(0, 6, 500)
    predicted = np.where(random.uniform(size=500) < 0.5, labels, (labels * 2 + random.integers(0, 3, 500)) % 7)
    names = np.array(list("abcdefgh"))
    return Predictions(labels, predicted, np.ones(500), names, np.zeros(0, int), np.zeros((0, 8, 8, 3), np.uint8))


def test_pairs_equal_scikit_learns(made):
    matrix = confusion_matrix(made.labels, made.predicted, labels=range(8))
    np.fill_diagonal(matrix, 0)
    pairs = tables.frequent_confusions(made, 10)
    assert [pair.images for pair in pairs] == sorted(matrix.ravel(), reverse=True)[:10]
    for pair in pairs:
        true, other = "abcdefgh".index(pair.true), "abcdefgh".index(pair.taken_for)
        assert pair.images == matrix[true, other]
        assert pair.share == pytest.approx(matrix[true, other] / (made.labels == true).sum())


def test_shares_equal_scikit_learns(made):
    with np.errstate(invalid="ignore"):
        matrix = np.nan_to_num(confusion_matrix(made.labels, made.predicted, labels=range(8), normalize="true"))
    np.testing.assert_allclose(tables.confusion_shares(made), matrix)


def test_classes_equal_scikit_learns(made):
    recalls = recall_score(made.labels, made.predicted, labels=range(6), average=None)
    classes = tables.worst_classes(made, 99)
    assert [one.name for one in classes] == ["abcdef"[k] for k in np.argsort(recalls, kind="stable")]
    assert [one.top1 for one in classes] == pytest.approx(sorted(recalls))
    assert sum(one.images for one in classes) == 500


def test_stages_have_their_numbers(make_run, tmp_path):
    facts = collect(make_run(tmp_path / "made", top1=lambda epoch: 12.345))
    assert tables.stage_table(facts)[1:] == [
        (name, px, "1/1", "12.35", "90.00", "65.43", "100", "1.2%", "0.2")
        for name, px in (("first_32", "32"), ("second_48", "48"))
    ]


def test_a_column_that_nothing_fills_is_left_out(make_run, tmp_path):
    facts = collect(make_run(tmp_path / "made", overrides={"stage.ema": "none", "stage.start": "last"}))
    assert "EMA top-1 %" not in tables.stage_table(facts)[0]
    assert "EMA top-1 %" not in tables.run_table([facts])[0]
    assert "EMA top-1 %" in tables.run_table([collect(make_run(tmp_path / "averaged")), facts])[0]
