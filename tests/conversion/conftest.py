"""Small images, archives of them, and the command that converts them."""

import io
import signal
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import write_datasets


def jpeg(number: int) -> bytes:
    """A JPEG file of 20 x 16 pixels, another one for each number."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def packed(members, **options) -> bytes:
    """A tar file of {name: bytes}."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(scope="session", name="jpeg")
def _jpeg():
    return jpeg


@pytest.fixture(scope="session", name="packed")
def _packed():
    return packed


class Written(NamedTuple):
    """What the command did: its exit status, and its lines."""

    status: int
    out: str
    err: str


@pytest.fixture
def write(capsys, tmp_path, monkeypatch):
    """write(*words): write_datasets.py in this process, with `tmp_path` as its folder and small pictures."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def write(*words):
        capsys.readouterr()
        try:
            write_datasets.main(["--data.workers=1", *words])
            status = 0
        except SystemExit as end:
            status = end.code
        return Written(status, *capsys.readouterr())

    yield write
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def pictures(tmp_path):
    """pictures("a/1.jpg", ...): files of different pictures below `tmp_path`, {path: bytes}."""

    def pictures(*names, first=0):
        files = {name: jpeg(number) for number, name in enumerate(names, first)}
        for name, content in files.items():
            Path(tmp_path, name).parent.mkdir(parents=True, exist_ok=True)
            Path(tmp_path, name).write_bytes(content)
        return files

    return pictures
