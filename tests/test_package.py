"""`pip install .` brings the package ffcv_ops alone, and what was installed works from an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ffcv_ops

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; import sys; getattr(build_meta, sys.argv[1])(sys.argv[2])"
FIRST_EPOCH = """
import numpy as np
import ffcv_ops
from ffcv_ops import train_loader, write_beton
write_beton("x.beton", [(np.full((40, 50, 3), number, np.uint8), number) for number in range(32)])
with train_loader("x.beton", resolution=16, batch_size=8, augment="three", seed=0) as loader:
    print(sum(len(labels) for _, labels in loader), ffcv_ops.__file__)
"""


def build(what, source, out):
    """What the build back end makes of a folder, offline."""
    ended = subprocess.run([sys.executable, "-c", BUILD, what, out], cwd=source, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return next(out.glob("*"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the sdist, which therefore is complete."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("repository/docs", "sdist", "wheel"):
        (folder / name).mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "docs/library.md"):
        shutil.copy(ROOT / name, folder / "repository" / name)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("ffcv_ops", "training", "config"):
        shutil.copytree(ROOT / name, folder / "repository" / name, ignore=ignore)
    with tarfile.open(build("build_sdist", folder / "repository", folder / "sdist")) as archive:
        archive.extractall(folder, filter="data")
    return build("build_wheel", folder / f"ffcv_ops-{ffcv_ops.__version__}", folder / "wheel")


def test_the_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        described = BytesParser().parsebytes(archive.read(metadata))
    sources = [path for path in (ROOT / "ffcv_ops").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert names == {str(path.relative_to(ROOT)) for path in sources}
    assert {Path(name).suffix for name in names} == {".py", ".c", ".h", ".typed"}
    assert (described["Name"], described["Version"]) == ("ffcv-ops", ffcv_ops.__version__)
    wanted = [Requirement(text) for text in described.get_all("Requires-Dist")]
    always = {one.name for one in wanted if one.marker is None}
    assert always >= {"ffcv", "torch", "numba"}
    assert not always & {"timm", "tensorboard", "matplotlib", "PyYAML", "fastargs"}


@pytest.mark.slow  # an installation has kernels of its own, which are compiled
@pytest.mark.timeout(600)
def test_an_installation_works_from_an_empty_folder(wheel, tmp_path):
    installed, empty, cache = tmp_path / "site", tmp_path / "empty", tmp_path / "cache"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", installed, wheel]
    subprocess.run(pip, check=True)
    before = sorted(installed.rglob("*"))
    environment = {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(cache)}
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_EPOCH],
        cwd=empty,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    seen, place = ended.stdout.split()
    assert (seen, Path(place).parent) == ("32", installed / "ffcv_ops")
    assert "compiling kernels" in ended.stderr
    assert list(cache.rglob("*.nbi"))
    assert sorted(installed.rglob("*")) == before, "machine code is kept in the cache, not in the package"
