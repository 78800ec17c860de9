"""Small images and archives of them."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image


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
