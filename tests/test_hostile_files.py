"""Files that want more than to be read: code in pickles and YAML, headers that promise too much, names that leave the
run folder. None may run anything, write outside of the run folder, take all memory or time, or reach the terminal."""

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from bench.faults import betons, damage

ROOT = Path(__file__).resolve().parents[1]
LIMITED = """
import resource, runpy, sys

resource.setrlimit(resource.RLIMIT_DATA, (2**34, 2**34))  # 16 GiB
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Payload:
    """Unpickled carelessly, it leaves a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


# --- each makes its files and returns what is added to the command line ---------------------------------------------


def _checkpoint(content: Callable[[Path], bytes]):
    """The run folder's only checkpoint, with a checksum that is right."""

    def make(place, given, run, data):
        folder, hostile = run / "checkpoints", content(place / "ran")
        folder.mkdir()
        checksum = xxhash.xxh3_128(hostile).hexdigest().encode()
        (folder / "000000001.pt").write_bytes(hostile + b"\nxxh3_128 " + checksum + b"\n")
        return []

    return make


def _saved(content) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _weights(name: str, content: Callable[[Path], bytes]):
    def make(place, given, run, data):
        (given / name).write_bytes(content(place / "ran"))
        return [f"--init={given / name}"]

    return make


def _safetensors(header: dict | bytes, length: int | None = None, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _recipe(text: str):
    def make(place, given, run, data):
        path = given / "recipe.yaml"
        path.write_text(text.format(mark=place / "ran"))
        return [f"--cfg={path}"]

    return make


def _key(word: str):
    return lambda place, given, run, data: [word.format(place=place)]


def _beton(change: Callable[[damage.File], None]):
    """A damaged .beton without sums that would tell."""

    def make(place, given, run, data):
        file = damage.File(data.read_bytes())
        change(file)
        for beside in data.parent.glob(f"{data.stem}.*"):
            beside.unlink()
        data.write_bytes(file.bytes.tobytes())
        return []

    return make


def _raw_that_overflows(file):
    """Raw pixels of 60,000 x 60,000, in a place that is as long as their product is in 32 bits."""
    file.records["image"]["mode"][7], file.records["image"]["height"][7] = 1, 60_000
    file.records["image"]["width"][7] = 60_000
    file.table["size"][7] = 3 * 60_000 * 60_000 % 2**32


def _far_pointer(file):
    file.records["image"]["data_ptr"][7] = file.table["ptr"][7] = 2**62


def _huge_jpeg(file):
    image = file.image(7)
    marker = bytes(image).index(b"\xff\xc0")
    image[marker + 5 : marker + 9] = [0xFF, 0xDC, 0xFF, 0xDC]
    file.records["image"]["height"][7] = file.records["image"]["width"][7] = 0xFFDC


def _sidecar(text: str):
    def make(place, given, run, data):
        data.with_suffix(".json").write_text(text)
        return []

    return make


def _names_with_escapes(place, given, run, data):
    names = data.with_suffix(".files.txt")
    names.write_text("".join(f"\033]0;owned\a\033[2J{k}\n" for k in range(betons.SAMPLES)))
    file = damage.File(data.read_bytes())
    file.image(7)[:] = 0
    data.write_bytes(file.bytes.tobytes())
    return []


def _links_to_above(place, given, run, data):
    """Two links in a folder to that folder: 2^40 ways down."""
    folder = given / "images" / "train" / "a"
    folder.mkdir(parents=True)
    for name in ("x", "y"):
        (folder / name).symlink_to(folder)
    return ["write_datasets.py", f"--data.source={given / 'images'}", f"--data.out={run / 'out'}"]


def _array_of_objects(place, given, run, data):
    np.save(given / "weights.npy", np.array([Payload(place / "ran")], dtype=object), allow_pickle=True)
    (given / "weights.npy").rename(given / "weights.safetensors")
    return [f"--init={given / 'weights.safetensors'}"]


_HUGE = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
_NESTED = "[" * 100_000 + "]" * 100_000
_BOMB = "stage: {{}}\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CASES: dict[str, Callable[..., list[str]]] = {
    "a checkpoint that runs a command": _checkpoint(lambda mark: _saved({"format": 3, "model": Payload(mark)})),
    "a bare pickle as a checkpoint": _checkpoint(lambda mark: pickle.dumps(Payload(mark))),
    "an old pickle as a checkpoint": _checkpoint(lambda mark: pickle.dumps(Payload(mark), protocol=0)),
    "a checkpoint of other types": _checkpoint(lambda mark: _saved({"format": 3, "model": Path("x"), "step": {1, 2}})),
    "weights that run a command": _weights("x.pth", lambda mark: _saved({"model": Payload(mark)})),
    "a pickle named safetensors": _weights("x.safetensors", lambda mark: pickle.dumps(Payload(mark))),
    "an array of objects named safetensors": _array_of_objects,
    "a safetensors header of 2^60 bytes": _weights("x.safetensors", lambda mark: _safetensors(b"{}", 2**60)),
    "a tensor of 2^40 numbers": _weights("x.safetensors", lambda mark: _safetensors(_HUGE)),
    "a safetensors header nested 100000 deep": _weights("x.safetensors", lambda mark: _safetensors(_NESTED.encode())),
    "a YAML tag that runs a command": _recipe("seed: !!python/object/apply:os.system ['touch {mark}']\n"),
    "a YAML bomb": _recipe(_BOMB),
    "YAML nested 100000 deep": _recipe(f"stage: {_NESTED}\n"),
    "a run name that leaves the folder": _key("--log.name=../../outside"),
    "an absolute run name": _key("--log.name={place}/outside"),
    "a stage name that leaves the folder": _key("--stage.name=../../outside"),
    "a beton that points far away": _beton(_far_pointer),
    "raw pixels that overflow": _beton(_raw_that_overflows),
    "a JPEG that claims 4 gigapixels": _beton(_huge_jpeg),
    "a description nested 100000 deep": _sidecar(f'{{"classes": {_NESTED}}}'),
    "class names that are paths": _sidecar(json.dumps({"classes": [f"../../../outside{k}" for k in range(5)]})),
    "names with escape codes": _names_with_escapes,
    "folders that contain themselves": _links_to_above,
}
MUST_BE_REFUSED = [name for name in CASES if "checkpoint" in name]  # the others may also do no harm


@pytest.fixture(scope="module")
def good(tmp_path_factory, fork_server) -> Path:
    return betons.write(tmp_path_factory.mktemp("good"), fork_server)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_does_no_harm(name, good, tmp_path, run_python):
    place, limited = tmp_path / "place", tmp_path / "limited.py"
    limited.write_text(LIMITED)
    given, runs = place / "given", place / "runs"
    given.mkdir(parents=True)
    (runs / "run").mkdir(parents=True)
    for beside in good.parent.glob(f"{good.stem}.*"):
        shutil.copy(beside, given)
    data = given / good.name
    words = ["train_imagenet.py", f"--cfg={ROOT / 'recipes' / 'smoke.yaml'}", f"--data.train={data}",
             f"--data.val={data}", f"--log.out={runs}", "--log.name=run", "--stage.batch=16", "--stage.mix_chunk=16",
             "--stage.resolution=32", "--data.workers=1"]  # fmt: skip
    extra = CASES[name](place, given, runs / "run", data)
    if extra and extra[0] == "write_datasets.py":
        words, extra = extra, ["--data.workers=1"]
    done = run_python([limited, ROOT / words[0], *words[1:], *extra], cwd=place, timeout=100)
    assert done.returncode == 2 or (done.returncode == 0 and name not in MUST_BE_REFUSED), done.stderr
    assert "\033" not in done.stdout + done.stderr
    left = [path.relative_to(place) for path in place.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in left} <= {"runs", "given"}
