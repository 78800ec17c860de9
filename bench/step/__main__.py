"""How long does a training step take, and where? Ours beside a loop like the official code's, and timm compiled.

    python -m bench.step [--quick] [--tasks S112,depth] [--only ours,reference] [--json FILE] [--beton FILE]

ours           training/step.py with `speed.drop_path: subset` and `speed.compile: true`
exact          the same with a mask for stochastic depth, as in the paper
ours-bf16      ours under bfloat16 autocast on a CPU that has such products; there the others compute in float32
reference      bench/step/reference.py: eager, waits in each step, masks, LAMB parameter by parameter, unfused attention
timm-compiled  timm's model, Mixup, Lamb and ModelEmaV3 in a plain loop, the model under torch.compile

All train the same model with LAMB on random uint8 images in host memory (float ones where the peer's loader makes
those). They take turns, one step each, so that a machine whose speed drifts is the same to all. Medians, in brackets
the range. Phases: `data` brings the batch to the device; `forward` mixes and goes to the logits or the loss. On a GPU
phases are its own times between events, and steps are not waited for, except by who waits.

`share`: multiply-adds of the model (those left out by `subset` not counted) as a share of what a square matrix product
reaches in the same turns. `memory`: peak, on a GPU of its memory, else of a process of its own, above what it had.
`--beton`: trains from that file through our loader, and tells how long steps wait for data.
"""

import argparse
from pathlib import Path

import torch

from bench import machine, report
from bench.command import chosen
from bench.step.loading import measure_loading
from bench.step.parts import measure_parts
from bench.step.tasks import ALL, ON_CPU, QUICK, TASKS
from bench.step.turns import measure_task
from bench.step.views import grids
from ffcv_ops.errors import exits_cleanly
from training import distributed


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two turns")
    parser.add_argument("--tasks", help=f"some of {','.join(TASKS)},parts (those of the device)")
    parser.add_argument("--only", help=f"some of {','.join(ON_CPU)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--repeats", type=int, help="turns (7; quick: 2)")
    parser.add_argument("--steps", type=int, help="of each in a turn (1; on a GPU 5)")
    parser.add_argument("--compile", choices=("true", "false"), help="ours and exact (true; quick: false)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (on a CPU it takes a process)")
    parser.add_argument("--beton", type=Path, help="also train from this file, at 128 px")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.compile = options.compile == "true" if options.compile else not options.quick
    options.repeats = options.repeats or (2 if options.quick else 7)
    options.steps = options.steps or (5 if options.device == "cuda" and not options.quick else 1)
    options.memory = not (options.quick or options.no_memory)
    known = [name for name, task in TASKS.items() if task.on == options.device] + ["parts"]
    options.tasks = chosen("task", options.tasks, known, ["quick", "parts"] if options.quick else known)
    options.only = chosen("contender", options.only, ON_CPU, ALL[:3] if options.quick else ON_CPU)
    return options


def describe_machine(device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return machine.describe() | {"device": name, "threads": torch.get_num_threads()}


@exits_cleanly
def main(argv=None):
    options = parse(argv)
    device = torch.device(options.device)
    torch.set_num_threads(distributed.threads())
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    rows = []
    for name in options.tasks:
        if name == "parts":
            rows += measure_parts(QUICK if options.quick else TASKS["S112"], options, device)
        else:
            rows += measure_task(name, TASKS.get(name, QUICK), options, device)
    if options.beton:
        rows += measure_loading(options.beton, options, device)
    described = describe_machine(device)
    report.tell(grids(rows), rows, options.json, described)
    print(f"{described['device']}; {machine.in_words(described)}")


if __name__ == "__main__":
    main()
