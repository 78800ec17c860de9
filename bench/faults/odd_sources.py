"""Sources of odd shapes, which must be refused or read rightly: Parquet, WebDataset, class names and numbers."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from bench.faults.runs import LIMIT
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server


def _jpeg(number: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 40, 90, 200)).save(stream, "JPEG")
    return stream.getvalue()


def _folder(place: Path, names=("a/odd.jpg", "a/1.jpg", "b/0.jpg")) -> list[str]:
    for number, name in enumerate(names):
        path = place / "in" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(number))
    return [f"--data.source={place / 'in'}"]


def _tar(place: Path, label: bytes = b"1", info: str | None = None) -> list[str]:
    (place / "in").mkdir()
    with tarfile.open(place / "in" / "0.tar", "w") as archive:
        for name, content in (("x.jpg", _jpeg()), ("x.cls", label)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    if info is not None:
        (place / "in" / "_info.json").write_text(info)
    return [f"--data.source={place / 'in'}"]


def _parquet(place: Path, image: object = None, label: object = 0, metadata: str | None = None) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [{"bytes": _jpeg()} if image is None else image], "label": [label]})
    table = table.replace_schema_metadata({"huggingface": metadata} if metadata else None)
    (place / "in").mkdir()
    pyarrow.parquet.write_table(table, place / "in" / "0.parquet")
    return [f"--data.source={place / 'in'}"]


def _with_list(place: Path) -> list[str]:
    (place / "list.txt").write_text("a\nb\n")
    return [*_folder(place), f"--data.classes={place / 'list.txt'}"]


def _info(**changes) -> str:
    return json.dumps({"splits": {"train": {"filenames": ["0.tar"], "shard_lengths": [1]} | changes}})


def _named(names) -> str:
    return json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})


# A file that a conversion reads: what writes the source and returns (words of the command, path of that file).
FILES: dict[str, Callable[[Path], tuple[list[str], Path]]] = {
    "an image": lambda place: (_folder(place), place / "in" / "train" / "a" / "odd.jpg"),
    "a tar": lambda place: (_tar(place), place / "in" / "0.tar"),
    "a Parquet file": lambda place: (_parquet(place), place / "in" / "0.parquet"),
    "_info.json": lambda place: (_tar(place, info=_info()), place / "in" / "_info.json"),
    "a class list": lambda place: (_with_list(place), place / "list.txt"),
}
REFUSED: dict[str, Callable[[Path], list[str]]] = {
    "Parquet: a struct of numbers": lambda place: _parquet(place, image={"bytes": 7}),
    "Parquet: structs in structs": lambda place: _parquet(place, image={"bytes": {"bytes": {"bytes": b""}}}),
    "Parquet: a list of images": lambda place: _parquet(place, image=[{"bytes": _jpeg()}]),
    "Parquet: labels that are no whole numbers": lambda place: _parquet(place, label=0.5),
    "Parquet: the label 10^8": lambda place: _parquet(place, label=10**8),
    "Parquet: class names that are one text": lambda place: _parquet(place, metadata=_named("ab")),
    "Parquet: class names 1e400": lambda place: _parquet(place, metadata=_named([]).replace("[]", "1e400")),
    "Parquet: metadata nested 10^5 deep": lambda place: _parquet(place, metadata="[" * 10**5),
    "_info.json: 1e400 samples": lambda place: _tar(place, info=_info().replace("[1]", "[1e400]")),
    "_info.json: nested 10^5 deep": lambda place: _tar(place, info="[" * 10**5),
    "_info.json: no file names": lambda place: _tar(place, info='{"splits": {"train": {}}}'),
    "_info.json: a file twice": lambda place: _tar(place, info=_info(filenames=["0.tar"] * 2, shard_lengths=[1, 1])),
    "WebDataset: the label 10^8": lambda place: _tar(place, label=b"100000000"),
    "a class in two Unicode forms": lambda place: _folder(place, ("caf\xe9/0.jpg", "cafe\u0301/0.jpg")),
    "classes 0 to 10": lambda place: _folder(place, [f"{number}/0.jpg" for number in range(11)]),
}  # fmt: skip


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    """Sources that a conversion must refuse: what it would write of them nobody means."""

    def converted(name: str) -> tuple[str, str]:
        place = folder / "".join(filter(str.isalnum, name))
        place.mkdir()
        words = ["write_datasets.py", f"--data.out={place / 'x'}", *REFUSED[name](place)]
        return judged(finished(server.start(words), LIMIT), right=lambda _: False)

    cases = [(name,) for name in list(REFUSED)[:: 4 if quick else 1]]
    return [Fault(name, *outcome) for (name,), outcome in each(cases, converted)]
