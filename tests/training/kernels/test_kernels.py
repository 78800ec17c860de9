"""Triton's kernels where no GPU is: in its interpreter against references, and compiled for two kinds of GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.test_optim import give_gradients, small_vit, update
from training import kernels, optim

ROOT = Path(__file__).resolve().parents[3]
triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from training.kernels import lamb  # noqa: E402

POINTERS = dict.fromkeys(("table", "shapes"), "*i64") | {"owners": "*i32"}
POINTERS |= dict.fromkeys(("sums", "squares", "divisor", "skip"), "*fp32")
LAMB = lamb.lamb_moments, lamb.lamb_lengths, lamb.lamb_apply


@pytest.mark.slow
def test_in_the_interpreter():
    """One process for all: Triton reads the variable when it is imported."""
    file = str(Path(__file__).with_name("interpreted.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("kernel", LAMB, ids=lambda kernel: kernel.fn.__name__)
def test_compiles_for_a_gpu(kernel, vectors, capability):
    """To machine code, without one. Where addresses allow it, a thread reads and writes 16 bytes at once."""
    constants = {"VECTORS": vectors}
    types = POINTERS | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {name: constants[name] for name in signature if name in constants})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert made.asm["cubin"][:4] == b"\x7fELF"
    if kernel is not lamb.lamb_lengths:
        assert ("ld.global.v4" in made.asm["ptx"], "st.global.v4" in made.asm["ptx"]) == (vectors, vectors)


def test_a_gpu_without_triton_takes_torchs_operations(capsys, monkeypatch):
    """One line, once."""
    monkeypatch.setattr(kernels, "_try", lambda device: 1 / 0)
    kernels.usable.cache_clear()
    assert not kernels.usable(torch.device("cpu"))
    assert not kernels.usable(torch.device("cuda", 0))
    assert not kernels.usable(torch.device("cuda", 0))
    kernels.usable.cache_clear()
    said = capsys.readouterr().err
    assert (
        said == "cuda:0: Triton cannot (ZeroDivisionError: division by zero); torch's own operations take its place\n"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_lamb_is_that_of_the_cpu():
    ends = []
    for device in ("cpu", "cuda"):
        network = small_vit().to(device)
        average = optim.Average(small_vit().to(device).requires_grad_(False), network, 0.9)
        optimizer = optim.Lamb(optim.parameter_groups(network, 0.05))
        for step in range(4):
            give_gradients(network, step, size=5.0)
            update(optimizer, clip_norm=1.0, average=average)
        ends.append([p.detach().cpu() for p in (*network.parameters(), *average.copy.parameters())])
    assert kernels.usable(torch.device("cuda", 0))
    for one, other in zip(*ends, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0)
