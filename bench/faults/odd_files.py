"""What is no file that ends, wherever a file is expected: nothing waits for it, and it is named."""

import itertools
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from bench.faults import betons
from bench.faults.runs import BEFORE, BETWEEN, LIMIT, copied, disturbed, same_weights, undisturbed
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server
from training.saving import checkpoint


def _holes(path: Path):
    path.touch()
    os.truncate(path, 2**40)


KINDS: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte of holes": _holes,
    "a link to nowhere": lambda path: path.symlink_to("gone"),
}
OF_A_RUN = ("x.beton", "x.json", "x.xxh64", "x.files.txt", "recipe.yaml", "base.yaml", "weights.safetensors")
OF_ITS_FOLDER = ("the newest checkpoint", "log.jsonl", "plan.json", "run.json", "recipe.yaml of the run")
KINDS_OF_RUNS = 2  # a run takes ten times as long as a conversion: each place meets two kinds, in turn


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    """Each kind as each file that a conversion reads; two of them as each file that a run reads, or goes on from."""
    data = betons.write(folder, server)
    recipe, whole = undisturbed(server, folder, data, epochs=1)
    sources = [(f"{kind} as {place}", place, kind) for place in SOURCES for kind in KINDS]
    places, kinds = OF_A_RUN + OF_ITS_FOLDER, itertools.cycle(KINDS)
    runs = [(f"{kind} as {place}", place, kind) for place in places for kind in itertools.islice(kinds, KINDS_OF_RUNS)]

    def replaced(name: str, place: str, kind: str) -> tuple[str, str]:
        target = folder / "cases" / name.replace(" ", "_")
        target.mkdir(parents=True)
        if place in SOURCES:
            return _converted(server, target, place, kind)
        copied(data, recipe, target)
        return _trained(server, target, whole, place, kind)

    cases = sources[:: 12 if quick else 1] + runs[:: 12 if quick else 1]
    return [Fault(name, *outcome) for (name, *_), outcome in each(cases, replaced)]


def _put(path: Path, kind: str):
    path.unlink(missing_ok=True)
    KINDS[kind](path)


def _converted(server: Server, folder: Path, place: str, kind: str) -> tuple[str, str]:
    write, name = SOURCES[place]
    odd = folder / name
    write(folder)
    _put(odd, kind)
    words = [f"--data.source={folder / 'in'}", f"--data.out={folder / 'x'}"]
    words += [f"--data.classes={odd}"] if place == "a class list" else []
    ended = finished(server.start(["write_datasets.py", *words]), LIMIT)
    listed = folder / "x_train.files.txt"
    return judged(ended, right=lambda _: listed.exists() and odd.name not in listed.read_text())


def _trained(server: Server, folder: Path, whole: Path, place: str, kind: str) -> tuple[str, str]:
    run = folder / "runs" / "run"

    def put():
        if place in OF_A_RUN:
            odd = folder / place
        elif place == "the newest checkpoint":
            odd = checkpoint.saved(run / "checkpoints")[-1]
        else:
            odd = run / place.removesuffix(" of the run")
        _put(odd, kind)

    more = [f"--init={folder / place}"] if place == "weights.safetensors" else []
    process = disturbed(server, folder, BEFORE if place in OF_A_RUN else BETWEEN, put, *more)
    return judged(finished(process, LIMIT), right=lambda _: same_weights(whole, run))


# --- sources of a conversion, in the folder `in` of a place ---------------------------------------------------------


def _jpeg(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (40, 90, 200)).save(path)
    return path


def _folder(place: Path):
    for name in ("a/odd.jpg", "a/1.jpg", "b/0.jpg"):
        _jpeg(place / "in" / "train" / name)


def _tar(place: Path):
    (place / "in").mkdir()
    (place / "x.cls").write_text("1")
    with tarfile.open(place / "in" / "0.tar", "w") as archive:
        for path in (_jpeg(place / "x.jpg"), place / "x.cls"):
            archive.add(path, path.name)


def _tar_and_info(place: Path):
    _tar(place)
    splits = {"train": {"filenames": ["0.tar"], "shard_lengths": [1]}}
    (place / "in" / "_info.json").write_text(json.dumps({"splits": splits}))


def _parquet(place: Path):
    import pyarrow
    import pyarrow.parquet

    (place / "in").mkdir()
    table = pyarrow.table({"image": [{"bytes": _jpeg(place / "x.jpg").read_bytes()}], "label": [0]})
    pyarrow.parquet.write_table(table, place / "in" / "0.parquet")


SOURCES: dict[str, tuple[Callable[[Path], None], str]] = {  # what writes one, and the file of it that becomes odd
    "an image": (_folder, "in/train/a/odd.jpg"),
    "a tar": (_tar, "in/0.tar"),
    "a Parquet file": (_parquet, "in/0.parquet"),
    "_info.json": (_tar_and_info, "in/_info.json"),
    "a class list": (_folder, "list.txt"),
}
