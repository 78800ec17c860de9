"""What there is to compute, counted and timed."""

import pytest
import torch

from bench.step import work
from bench.step.tasks import QUICK
from training import cost, model

CPU = torch.device("cpu")
TINY = QUICK._replace(batch=16, drop_path=0.45)


def test_multiply_adds_leave_out_what_a_subset_leaves_out():
    """9 of 16 samples go through the blocks: against torch's counter on the two parts."""
    whole, part = (work.macs(TINY, subset=subset) for subset in (False, True))
    network = model.create(TINY.model, resolution=TINY.resolution, classes=1000, drop_path=0.0, layer_scale=1e-4)
    assert whole == pytest.approx(cost.gmacs(network, TINY.resolution))
    outside = (9 * 16 * 16 * 3 * 128 + 1000 * 128) / 1e9  # patch embedding and head
    assert part == pytest.approx(outside + (whole - outside) * 9 / 16, rel=1e-6)


def test_a_matrix_product_is_timed():
    product = work.Matmul(CPU, torch.float32)
    product.one = product.other = torch.ones(64, 64)
    product.size = 64
    assert 0 < product() < 1e15
