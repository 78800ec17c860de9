"""Runs a grid, the choices of some axes x seeds, or what is left of it, and reports what is there.

    python -m rn_vs_vit --cfg rn_vs_vit/small.yaml
    python -m rn_vs_vit --cfg rn_vs_vit/grid.yaml --data.train=train.beton --data.val=val.beton
    python -m rn_vs_vit --cfg rn_vs_vit/grid.yaml --v2=v2.beton --real
    python -m rn_vs_vit --cfg rn_vs_vit/grid.yaml --report

Start it as often as there are GPUs or Slurm jobs, each with its own CUDA_VISIBLE_DEVICES and all with the same folder:
a process takes the next cell that is neither finished nor another's. A finished cell is not run again, a killed one
goes on from its checkpoint. Results go to LOG.OUT/GRID/: table.md, two plots and a run folder for each cell.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from config import command_line
from config.recipe import base_values, load_recipe, render_recipe, result_changing_diff, result_changing_options
from config.schema import SECTIONS
from ffcv_ops.errors import UserError, exits_cleanly
from ffcv_ops.files import Locked, locked, write_atomically
from ffcv_ops.options import parse_value

MOST_CELLS = 1_000_000


def positive(text: str) -> int:
    """A whole number from 1 to MOST_CELLS."""
    return parse_value(int, text, {"at least": 1, "at most": MOST_CELLS})


ARGUMENTS = (
    ("--cfg", {"required": True, "metavar": "FILE", "help": "the grid"}),
    ("--cells", {"metavar": "N", "type": positive, "help": "stop after so many cells, for jobs of limited time"}),
    ("--init", {"metavar": "WEIGHTS", "help": "weights that every cell starts from, as train_imagenet.py takes them"}),
    ("--v2", {"metavar": "BETON", "help": "evaluate finished cells on these images too, ImageNet-V2"}),
    ("--real", {"action": "store_true", "help": "evaluate them on data.val with ImageNet-ReaL's labels too"}),
    ("--report", {"action": "store_true", "help": "run nothing, report what is there"}),
)


def parse(argv=None):
    """The plain arguments, and the config options that hold for all cells."""
    return command_line.parse(__doc__, SECTIONS, base_values(), ARGUMENTS, argv)


if __name__ == "__main__":  # --help and mistakes are answered here: the imports below take seconds
    exits_cleanly(parse)()

from rn_vs_vit import grid, others, report
from training.datasets import open_sets
from training.distributed.stop import SIGNALS
from training.logging.records import read_json
from training.network import weights
from training.saving import run_identity

SCRIPT = Path(__file__).resolve().parents[1] / "train_imagenet.py"


@exits_cleanly
def main(argv=None) -> bool:
    """Returns whether it was asked to stop (SIGUSR1) before its end."""
    options, overrides = parse(argv)
    wanted = grid.read(options.cfg, overrides, weights.preprocessing(options.init) if options.init else None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a cell runs on one device; start this once for each device instead of with torchrun")
    faults, stopped = [], False
    if not options.report:
        check_data(wanted)
        faults, stopped = run_cells(wanted, most=options.cells, init=options.init)
    wanted, remark = as_run(wanted, {key: value for key, value in overrides.items() if key.startswith("data.")})
    for cell in wanted.cells:
        if cell.done:
            others.evaluate(cell, v2=options.v2, real=options.real)
    print(report.write(wanted, remark))
    if faults:
        raise UserError(f"{len(faults)} cells failed: {'; '.join(faults)}")
    return stopped


def check_data(wanted: grid.Grid) -> None:
    """UserError where cells that are there were trained on other data than this grid's."""
    opened = {}
    for cell in wanted.cells:
        if cell.run.data not in opened:
            opened[cell.run.data] = open_sets(cell.run)
        before = read_json(cell.folder / run_identity.FILE)
        now = run_identity.identity_of(cell.run, opened[cell.run.data], init=None, code="")
        if before is not None and (changed := run_identity.difference(before, now)):
            raise UserError(f"{cell.folder} holds another run ({changed}); choose another --log.out")


def run_cells(wanted: grid.Grid, *, most: int | None, init: str | None) -> tuple[list[str], bool]:
    """Runs the cells that nobody else has, at most `most` of them. Returns what failed, and whether to stop."""
    faults, left = [], len(wanted.cells) if most is None else most
    for cell in wanted.cells:
        if left == 0:
            break
        with claimed(cell) as free:
            if not free or finished(cell):
                continue
            left -= 1
            path = cell.folder / "recipe.yaml"
            if not path.exists():
                write_atomically(path, lambda file, run=cell.run: file.write_text(render_recipe(run)))
            status = train(path, init)
            if status in [128 + number for number in SIGNALS]:
                return faults, True
            if status:
                print(f"{cell.folder}: ended with status {status}; why is said above")
                faults.append(cell.run.log.name)
    return faults, False


def train(recipe: Path, init: str | None) -> int:
    """The exit status of train_imagenet.py, in a process of its own: what one cell compiled or left in memory is not in
    the way of the next. It gets the signals that ask for a stop, and ends when this process ends."""
    command = [sys.executable, SCRIPT, f"--cfg={recipe}"] + ([f"--init={init}"] if init else [])
    training = subprocess.Popen(command, preexec_fn=_end_with_parent)
    handlers = {number: signal.signal(number, lambda number, _: training.send_signal(number)) for number in SIGNALS}
    try:
        return training.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_with_parent():
    """In the child before it becomes another program: Linux kills it when its parent is gone (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextmanager
def claimed(cell: grid.Cell):
    """Holds the cell's lock, or yields False where another process has it. A lock ends with its process, killed or not;
    on a network file system that is up to its flock."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(cell.folder / "lock", str(cell.folder)))
        except Locked:
            yield False
            return
        yield True


def finished(cell: grid.Cell) -> bool:
    """Whether the cell's run came to its end. UserError where that was a run of another recipe."""
    if not cell.done:
        return False
    if changed := result_changing_diff(load_recipe(cell.folder / "recipe.yaml"), cell.run):
        raise UserError(f"{cell.folder} holds a run of another recipe ({changed}); choose another --log.out")
    return True


def as_run(wanted: grid.Grid, moved: dict[str, str]) -> tuple[grid.Grid, str]:
    """The grid with the recipes that its finished cells were run with, and in what these differ from the grid's, all
    alike. So a report needs none of the keys that the runs were given. moved: where their data are now. UserError where
    the recipes differ among themselves."""
    cells, changes = [], {}
    for cell in wanted.cells:
        if cell.done:
            run = load_recipe(cell.folder / "recipe.yaml", moved)
            asked = result_changing_options(cell.run)
            changed = [
                f"{key} {value}" for key, value in result_changing_options(run).items() if value != asked.get(key)
            ]
            changes.setdefault(", ".join(changed), cell.folder)
            cell = cell._replace(run=run)
        cells.append(cell)
    if len(changes) > 1:
        first, second, *_ = ([what or "the grid as it is", str(folder)] for what, folder in changes.items())
        raise UserError(f"not to be compared: {first[1]} was run with {first[0]}, {second[1]} with {second[0]}")
    remark = next(iter(changes), "")
    return wanted._replace(cells=tuple(cells)), remark and f"All cells with {remark}."


if __name__ == "__main__":
    raise SystemExit(1 if main() else 0)
