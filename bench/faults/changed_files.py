"""A .beton that is rewritten in place with its times put back: between two starts, under a run, behind a link."""

import os
from pathlib import Path

from bench.faults import betons, damage
from bench.faults.runs import BEFORE, BETWEEN, LIMIT, UNDER, copied, disturbed, same_weights, undisturbed
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server

LINKED = f"{BEFORE}, behind a link"
CASES = [(BETWEEN, True), (BETWEEN, False), (UNDER, True), (UNDER, False), (LINKED, True)]


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    """With what lies beside the file, and without."""
    data = betons.write(folder, server)
    recipe, whole = undisturbed(server, folder, data, epochs=1)

    def changed(when: str, described: bool) -> tuple[str, str]:
        place = folder / f"{when} {described}".replace(" ", "_")
        (place / "elsewhere").mkdir(parents=True)
        file = copied(data, recipe, place, beside=described)
        if when == LINKED:
            for beside in place.glob("x.*"):
                beside.rename(place / "elsewhere" / beside.name)
            file.symlink_to(place / "elsewhere" / "x.beton")
        moment = BEFORE if when == LINKED else when
        process = disturbed(server, place, moment, lambda: _rewrite(file.resolve()), behind=2)
        return judged(finished(process, LIMIT), right=lambda _: same_weights(whole, place / "runs" / "run"))

    cases = CASES[:: 4 if quick else 1]
    names = {True: "with what lies beside it", False: "alone"}
    return [Fault(f"{names[described]}, {when}", *end) for (when, described), end in each(cases, changed)]


def _rewrite(path: Path):
    """Other bytes in the middle of each image, under which a JPEG often decodes."""
    before, file = path.stat(), damage.File(path.read_bytes())
    for number in range(len(file.table)):
        image = file.image(number)
        image[len(image) * 3 // 4 :][:4] ^= 0x11
    with path.open("r+b") as there:
        there.write(file.bytes.tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
