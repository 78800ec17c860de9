"""Can this machine train? Looks at everything a run needs and says the one line that mends what is wrong.

    python -m tools.doctor                                          # the installation and the machine
    python -m tools.doctor data/train.beton data/val.beton          # and the data: disk, memory
    python -m tools.doctor --cfg recipes/vit_s_400ep.yaml           # and a recipe with its data

Exit status 1 when something makes training impossible (a fault), else 0. It starts wherever Python does: libraries are
imported in processes of their own, so that one that is missing, crashes or hangs is a line of the table.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from config.parser import Parser
from ffcv_ops.errors import exits_cleanly
from tools.doctor import data, installation, machine, questions, recipes
from tools.doctor.findings import FAULT, WARNING, Finding, show


@exits_cleanly
def main(argv=None) -> int:
    """Returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE.beton", help="data to look at")
    parser.add_argument("--cfg", metavar="RECIPE", help="a recipe to look at, with its data")
    options = parser.parse_args(argv)
    findings = list(examine(options.files, options.cfg))
    show(findings)
    return int(any(finding.state == FAULT for finding in findings))


def examine(files: Sequence[str], cfg: str | None) -> Iterator[Finding]:
    """All findings. A check that fails itself is a warning."""
    yield from _guarded("Python", installation.python)
    yield from _guarded("system libraries", installation.system_libraries)
    imported = questions.answers(questions.IMPORTS, installation.LIBRARIES)
    for name in installation.LIBRARIES:
        yield from _guarded(name, installation.library, name, imported[name])
    yield from _guarded("other packages", installation.other_packages)
    yield from _guarded("JPEG decoder", installation.decoder)
    yield from _guarded("kernel cache", installation.kernel_cache)
    yield from _guarded("cores", machine.cores)
    yield from _guarded("memory", machine.memory)
    yield from _guarded("open files", machine.open_files)
    torch = {"gpus": [], "bf16": False, "nccl": False, "cuda": None} | imported["torch"]
    yield from _guarded("GPUs", machine.gpu, torch)
    yield from _guarded("processes", machine.processes, torch)
    yield from _guarded("/dev/shm", machine.shared_memory, len(torch["gpus"]))
    run = None
    if cfg:
        for row in _guarded("recipe", recipes.read_recipe, cfg):
            if isinstance(row, Finding):
                yield row
            else:
                run = row
    yield from _guarded("disk", machine.disk, Path(run.log.out if run else "runs"))
    pairs = recipes.pairs_of(run) if run else []
    paths = {name: data.paths_of(name) for name in itertools.chain(files, *pairs)}
    found = ["\n".join(pair) for pair in pairs if all(paths[name] for name in pair)]
    known = questions.answers(questions.FILES, [*(name for name in paths if paths[name]), *found])
    for name in paths:
        yield from _guarded(name, data.beton, name, paths[name], known.get(name, {}), "error" not in imported["ffcv"])
    for pair in found:
        if not any("refused" in known.get(name, {}) for name in pair.split("\n")):
            yield from _guarded("train and val", recipes.pair_fits, known.get(pair, {}))
    if every := {path for found in paths.values() for path in found}:
        yield from _guarded("data and memory", data.data_in_memory, every)
    if run:
        yield from _guarded("recipe", recipes.recipe_fits, run, known, torch)


def _guarded(what, check, *arguments):
    try:
        yield from check(*arguments)
    except Exception as error:  # a check that cannot look is no reason not to show the others
        yield Finding(what, WARNING, f"could not be looked at: {type(error).__name__}: {error}")


if __name__ == "__main__":
    raise SystemExit(main())
