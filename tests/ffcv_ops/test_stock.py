import subprocess
import sys
from pathlib import Path

import numba

from ffcv_ops import stock

ROOT = Path(__file__).resolve().parents[2]


def test_ffcv_is_imported_in_one_place():
    others = [
        f"{path.relative_to(ROOT)}: {line}"
        for part in ("ffcv_ops", "training", "conversion", "config", "report", "tools", "rn_vs_vit")
        for path in (ROOT / part).rglob("*.py")
        if path.name != "stock.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.split()[:2] in (["import", "ffcv"], ["from", "ffcv"])
        or line.strip().startswith(("from ffcv.", "import ffcv."))
    ]
    assert not others


def test_the_import_compiles_nothing_and_leaves_numba_and_torch_as_they_were():
    code = """
import numba.core.compiler as compiler
compiled = []
real = compiler.compile_extra
compiler.compile_extra = lambda *a, **k: compiled.append(a) or real(*a, **k)
import numba.typed
import torch
torch.set_num_threads(3)
before = numba.typed.Dict
from ffcv_ops import stock
assert numba.typed.Dict is before and before is not dict
assert stock.IMAGE_MODES == {"jpg": 0, "raw": 1}
assert not compiled, len(compiled)
assert torch.get_num_threads() == 3
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr


def test_ffcvs_loader_leaves_numbas_types_as_they_are(jpg_beton):
    """FFCV's own reader makes the type of byte arrays read-only, for every kernel of the process."""
    kind = numba.uint8[::1]
    stock.Loader(str(jpg_beton), batch_size=8, num_workers=1, pipelines={"image": None})
    assert kind.mutable


def test_numbas_threads_are_started_for_ffcvs_own_loaders_only(jpg_beton):
    """On one core a process that started them may wait for them at its end, and never end."""
    code = f"""
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from numba.np.ufunc import parallel
from ffcv_ops import stock, train_loader
for images, labels in train_loader({str(jpg_beton)!r}, resolution=32, batch_size=8, seed=0, workers=1):
    pass
assert not parallel._is_initialized
stock.Loader({str(jpg_beton)!r}, batch_size=8, num_workers=1, pipelines={{"image": None}})
assert parallel._is_initialized
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
