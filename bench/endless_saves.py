"""A process that saves checkpoints without end, for whoever wants to kill it.

    python -m bench.endless_saves FOLDER --megabytes=20      # a line, the step, for each checkpoint that is on the disk
    python -m bench.endless_saves FOLDER --newest            # its newest whole one: the step, and whether it is right

It starts fast: it knows torch and training/checkpoint.py, and no model.
"""

import argparse
import itertools
from pathlib import Path

import torch

from training import checkpoints

PARTS = 40  # tensors of a checkpoint that is there to be killed


def content_of(step: int, megabytes: float) -> dict:
    """Tensors in which every number is the step."""
    return {str(k): torch.full((int(megabytes * 1e6 / 4 / PARTS),), float(step)) for k in range(PARTS)} | {"step": step}


def save_forever(folder: Path, megabytes: float) -> None:
    """Goes on after the newest; says each step once its checkpoint is on the disk."""
    checkpoints.remove_strays(folder) if folder.exists() else folder.mkdir(parents=True)
    found = checkpoints.newest(folder, print)
    for step in itertools.count(found[1]["step"] + 1 if found else 1):
        checkpoints.write(folder, step, content_of(step, megabytes), keep=2)
        print(step, flush=True)


def newest(folder: Path) -> tuple[int, bool]:
    """The step of the newest whole checkpoint (0: none), and whether all of it is of that step."""
    found = checkpoints.newest(folder, print)
    if not found:
        return 0, True
    step = found[1].pop("step")
    return step, all(bool((part == step).all()) for part in found[1].values())


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--newest", action="store_true")
    options = parser.parse_args(argv)
    if options.newest:
        print(*newest(options.folder))
    else:
        save_forever(options.folder, options.megabytes)


if __name__ == "__main__":
    main()
