"""What is counted without a GPU, against counts made by hand."""

from pathlib import Path

import pytest
import torch

from bench import report
from bench.step import counts
from bench.step.baselines import QUICK


def test_single_operations():
    x, weight = torch.zeros(8, 4), torch.zeros(4, 4)
    with counts.Counted() as found:
        y = (x @ weight).t().reshape(32)  # a product; t is a view, its reshape a copy
        y.mul(2.0)
    assert found.launches == {"heavy": 1, "pointwise": 2}
    assert found.bytes == 4 * (2 * 32 + 2 * 32)


def test_multi_tensor_operations():
    """Two chunks' worth of launches for 321 chunks; 111 small tensors are one more than a launch of one list takes."""
    large, small = [torch.empty(321 * 65_536)], [torch.empty(1)] * 111
    assert counts.launches_of([large]) == 2
    assert counts.launches_of([small]) == 2
    assert counts.launches_of([small[:48]] * 3) == 1
    assert counts.launches_of([[torch.empty(4)] * 9, small[:9]]) == 9  # unlike shapes: one by one


@pytest.mark.parametrize(("drop_path", "copies"), [("exact", 4), ("subset", 5)])
def test_a_step(drop_path, copies):
    """Copied are images, labels, mixing's draws, masks, with subset also which samples are kept. A block launches four
    products and attention; backward twice the products, and attention."""
    task = QUICK._replace(drop_path=0.3)
    whole, updated, found = counts.eager(task, drop_path)
    rest, updated_rest, _ = counts.eager(task, drop_path, blocks=False)
    assert found == copies
    assert whole.launches["heavy"] - rest.launches["heavy"] == 6 * (3 * 4 + 2)
    assert whole.bytes > rest.bytes > 0
    assert updated.launches["multi-tensor"] >= updated_rest.launches["multi-tensor"] > 0


def test_the_page_of_the_project_shows_what_its_file_says():
    page = (Path(report.RESULTS).parents[1] / "docs/performance.md").read_text()
    assert counts.table(report.RESULTS / "step_counts.json") in page
