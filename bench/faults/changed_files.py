"""A .beton that is rewritten in place with its times put back: between two starts, under a run, behind a link."""

import os
import shutil
import signal
from pathlib import Path

from bench.faults import betons, damage
from bench.faults.runs import LIMIT, command, same_weights, steps, undisturbed, wait_until
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server

BETWEEN, UNDER, LINKED = "between two starts", "under the run", "before the start, behind a link"
CASES = [(BETWEEN, True), (BETWEEN, False), (UNDER, True), (UNDER, False), (LINKED, True)]


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    """With what lies beside the file, and without."""
    data = betons.write(folder, server)
    recipe, whole = undisturbed(server, folder, data, epochs=1)

    def changed(when: str, described: bool) -> tuple[str, str]:
        target = folder / f"{when} {described}".replace(" ", "_")
        (target / "elsewhere").mkdir(parents=True)
        place = target / "elsewhere" if when == LINKED else target
        for beside in data.parent.glob(f"{data.stem}.*") if described else [data]:
            shutil.copy(beside, place / beside.name.replace(data.stem, "x"))
        if when == LINKED:
            (target / "x.beton").symlink_to(place / "x.beton")
        for beside in recipe.parent.glob("*.yaml"):
            shutil.copy(beside, target)
        return _outcome(server, target, place / "x.beton", whole, when)

    cases = CASES[:: 4 if quick else 1]
    names = {True: "with what lies beside it", False: "alone"}
    return [Fault(f"{names[described]}, {when}", *end) for (when, described), end in each(cases, changed)]


def _outcome(server: Server, folder: Path, data: Path, whole: Path, when: str) -> tuple[str, str]:
    run = folder / "runs" / "run"
    words = command(folder / "recipe.yaml", folder / "x.beton", run.parent, "run")
    if when == LINKED:
        _rewrite(data)
    process = server.start(words)
    if when != LINKED:
        wait_until(process, lambda: steps(run) >= 2)
    if when == BETWEEN:
        process.send_signal(signal.SIGTERM)
        finished(process, LIMIT)
        _rewrite(data)
        process = server.start(words)
    if when == UNDER:
        _rewrite(data)
    return judged(finished(process, LIMIT), right=lambda _: same_weights(whole, run))


def _rewrite(path: Path):
    """Other bytes in the middle of each image, under which a JPEG often decodes."""
    before, file = path.stat(), damage.File(path.read_bytes())
    for number in range(len(file.table)):
        image = file.image(number)
        image[len(image) * 3 // 4 :][:4] ^= 0x11
    with path.open("r+b") as there:
        there.write(file.bytes.tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
