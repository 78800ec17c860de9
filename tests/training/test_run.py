"""What surrounds a forward pass."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from training.run import attention


@pytest.mark.parametrize(("capability", "first"), [((8, 0), "FLASH_ATTENTION"), ((9, 0), "CUDNN_ATTENTION")])
def test_attention_has_one_order_on_a_gpu(monkeypatch, capability, first):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = torch._C._get_sdp_priority_order()
    with attention(torch.device("cuda", 0)):
        order = torch._C._get_sdp_priority_order()
        assert SDPBackend(order[0]).name == first
        assert torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert torch._C._get_sdp_priority_order() == before
    with attention(torch.device("cpu")):
        assert torch._C._get_sdp_priority_order() == before
