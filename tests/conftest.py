"""Images, .beton files and processes that many tests share. The .beton files here are written by stock FFCV."""

import io
import os
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image

from bench.processes import Server
from tests import emulated_streams

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Tests with the mark `gpu` are skipped where there is none."""
    if torch.cuda.device_count() == 0:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def pretended_gpu():
    """With PRETEND_GPU=1 torch says that there is a GPU, and FFCV takes its (emulated) streams for loaders on the CPU
    too: a rehearsal of this suite for a machine with a GPU. Started commands see none, there as here."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("PRETEND_GPU"):
            patch.setattr(torch.cuda, "is_available", lambda: True)
            emulated_streams.install(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two threads of torch mostly wait for each other on tensors as small as the tests': 4 times the work, and on a
    busy machine 5 times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell ignores Ctrl-C in what it runs in the background, and so would the commands that are tested there."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _photo(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="session")
def photos() -> dict[str, np.ndarray]:
    """Real photographs, uint8 [height, width, 3]."""
    here, there = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    return {
        "cat": _photo(here / "chelsea.png"),
        "page": _photo(here / "page.png"),
        "rocket": _photo(here / "rocket.jpg"),
        "china": _photo(there / "china.jpg"),
    }


def _pillow_resize(image, size, kind=Image.Resampling.BICUBIC, box=None):
    """Pillow's `resize`, one axis at a time: horizontally first, as all versions before 13 do by themselves."""
    left, top, right, bottom = box or (0, 0, *image.size)
    narrow = image.resize((size[0], image.height), kind, (left, 0, right, image.height))
    return narrow.resize(size, kind, (0, top, size[0], bottom))


@pytest.fixture(scope="session")
def pillow_resize():
    return _pillow_resize


@pytest.fixture(scope="session")
def odd_images() -> dict[str, np.ndarray]:
    """Images on which resamplers and blurs go wrong: tiny, thin, flat, extreme."""
    noise = np.random.default_rng(0)
    return {
        "one pixel": np.array([[[7, 130, 255]]], np.uint8),
        "row": noise.integers(0, 256, (1, 60, 3), dtype=np.uint8),
        "column": noise.integers(0, 256, (45, 1, 3), dtype=np.uint8),
        "small": noise.integers(0, 256, (5, 3, 3), dtype=np.uint8),
        "odd": noise.integers(0, 256, (37, 53, 3), dtype=np.uint8),
        "black": np.zeros((40, 30, 3), np.uint8),
        "white": np.full((30, 40, 3), 255, np.uint8),
        "checkerboard": np.kron(np.indices((20, 20)).sum(0) % 2, np.ones((2, 2), int))[..., None]
        .repeat(3, 2)
        .astype("u1")
        * 255,
    }


class _Samples:
    """What stock FFCV's writer takes: an indexable of (image, label)."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 5


@pytest.fixture(scope="session")
def tiles(photos) -> list[np.ndarray]:
    """96 tiles of different sizes cut out of the photographs."""
    cut = []
    for number in range(96):
        photo = list(photos.values())[number % len(photos)]
        height, width = 60 + number % 41, 70 + number % 37
        top = (number * 13) % (photo.shape[0] - height)
        left = (number * 29) % (photo.shape[1] - width)
        cut.append(np.ascontiguousarray(photo[top : top + height, left : left + width]))
    return cut


def _write(path, images, mode):
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(_Samples(images))
    return path


@pytest.fixture(scope="session")
def jpg_beton(tmp_path_factory, tiles) -> Path:
    """The tiles as JPEG, labels index % 5."""
    return _write(tmp_path_factory.mktemp("beton") / "jpg.beton", tiles, "jpg")


@pytest.fixture(scope="session")
def raw_beton(tmp_path_factory, tiles) -> Path:
    """The tiles as raw pixels, labels index % 5."""
    return _write(tmp_path_factory.mktemp("beton") / "raw.beton", tiles, "raw")


@pytest.fixture(scope="session")
def encode():
    """encode(array, **options): JPEG bytes by Pillow."""

    def encode(array, **options):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "JPEG", **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def fork_server():
    """Starts commands and functions in processes that have their imports done and compute with one thread."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def launch(fork_server):
    """launch(ranks, words, ...): processes that do what `python WORDS` does, but with the imports done. Several are a
    world, as torchrun's are."""

    def launch(ranks, words, *, cwd=ROOT, **own):
        if ranks == 1:
            return [fork_server.start(words, cwd=cwd, **own)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        own |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        return [fork_server.start(words, cwd=cwd, **own, **place) for place in places]

    return launch


@pytest.fixture
def start_python(launch):
    """start_python(words, ranks=1, ...): the started processes, which are killed at the end of the test."""
    started = []

    def start_python(words, *, ranks=1, **more):
        processes = launch(ranks, words, **more)
        started.extend(processes)
        return processes

    yield start_python
    for process in started:
        process.kill()
        process.wait(20)


@pytest.fixture(scope="session")
def run_python(launch):
    """run_python(words, ranks=1, ...): as subprocess.run; of several processes the worst status and all output."""

    def run_python(words, *, ranks=1, timeout=280, **more):
        processes = launch(ranks, words, **more)
        try:
            said = [process.communicate(timeout=timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        status = max((process.returncode for process in processes), key=abs)
        return subprocess.CompletedProcess(words, status, *map("".join, zip(*said, strict=True)))

    return run_python
