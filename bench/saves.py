"""How long a checkpoint takes.

    python -m bench.saves [--model NAME] [--quick] [--out FOLDER] [--json FILE]

What is timed is a checkpoint of the model, its average and LAMB's two moments: all of it, to the disk's confirmation,
and what torch.save alone takes for the same content, without checksum and without waiting for the disk.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch

from bench import report
from config.recipe import BASE_RECIPE, Recipe, load_recipe
from ffcv_ops.errors import exits_cleanly
from training import checkpoints, model, optim
from training.run_folder import RunFolder, State
from training.step_stats import StepStats


def state_of(name: str, run: Recipe) -> State:
    """A model with its average after a step, so that its optimizer has moments."""
    network = model.create(name, resolution=224, classes=1000, drop_path=0.0, layer_scale=1e-4)
    optimizer = optim.build(network, run.stages[0])
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return State(0, 0, 1, network, copy.deepcopy(network), optimizer, scaler)


def timed(name: str, out: Path, turns: int) -> list[dict]:
    """Rows: seconds of whole saves and of torch.save alone, in turns."""
    seconds = {"ours": [], "torch.save": []}
    with tempfile.TemporaryDirectory(dir=out) as place:
        run = load_recipe(BASE_RECIPE, {"log.out": place, "log.keep": "1"})
        folder, state = RunFolder(run), state_of(name, run)
        folder.prepare(run)
        for _ in range(turns):
            began = time.perf_counter()
            assert folder.save(state, StepStats(), first=True) == ""
            seconds["ours"].append(time.perf_counter() - began)
            content = folder.load()
            began = time.perf_counter()
            torch.save(content, Path(place) / "plain.pt")
            seconds["torch.save"].append(time.perf_counter() - began)
            state.step += 1
        size = checkpoints.saved(folder.checkpoints)[-1].stat().st_size / 1e6
    return [report.row(f"{name}, {size:.0f} MB", key, values, "s") for key, values in seconds.items()]


@exits_cleanly
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit3_small_patch16_224")
    parser.add_argument("--out", type=Path, default=Path(), help="a folder on the disk in question")
    parser.add_argument("--quick", action="store_true", help="a small model, two turns")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    name = "deit3_micro_patch16_224" if options.quick else options.model
    rows = timed(name, options.out, 2 if options.quick else 7)
    lines = [[row["task"], row["name"], f"{row['value']:.2f} ({row['lo']:.2f}-{row['hi']:.2f})"] for row in rows]
    report.tell([report.Grid("A checkpoint", ["content", "by", "seconds"], lines)], rows, options.json)


if __name__ == "__main__":
    main()
