"""How long does a training step take, and where? Ours beside a loop like the official code's, and timm compiled.

    python -m bench.step [--quick] [--tasks S112,depth.45] [--only ours,reference] [--json FILE] [--beton FILE]
    python -m bench.step --table [--markdown docs/performance.md]

ours           the step of train_imagenet.py with `speed.drop_path: subset` and `speed.compile: true`
exact          the same with a mask for stochastic depth, as in the paper
ours-bf16      ours under bfloat16 autocast on a CPU that has such products; there the others compute in float32
reference      as the official code: eager, waits in each step, masks, LAMB parameter by parameter, unfused attention
timm-compiled  timm's model, Mixup, Lamb and ModelEmaV3 in a plain loop, the model under torch.compile

All train the same model with LAMB on random images of one batch, in host memory as their own loaders hand them over
(ours and timm: uint8; reference: normalised float32; for a GPU in pinned memory). They are interleaved, one step
each, so that a machine whose speed drifts is the same to all. Medians, in brackets the range. Phases: `data` brings the
batch to the device; `forward` mixes and goes to the logits or the loss. On a GPU phases are its own times between
events, and steps are not waited for, except by who waits.

`share`: multiply-adds of the model (those left out by `subset` not counted) as a share of what a square matrix product
reaches in the same turns. `memory`: peak with the weights, on a GPU of its memory, else of a process of its own, above
what it had. `--beton`: trains from that file through our loader, and tells how long steps wait for data.
"""

from pathlib import Path

import torch

from bench import machine, report
from bench.report import chosen
from bench.step.baselines import ALL, ON_CPU, QUICK, TASKS
from bench.step.measure import measure_loading, measure_parts, measure_task
from bench.step.views import grids, kept_results, summary
from config.parser import Parser
from ffcv_ops.errors import UserError, exits_cleanly
from training import distributed

MARKER = "bench.step"


def parse(argv):
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two turns")
    parser.add_argument("--tasks", help=f"some of {','.join(TASKS)},parts (those of the device)")
    parser.add_argument("--only", help=f"some of {','.join(ON_CPU)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--repeats", type=int, help="turns (7; quick: 2)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (on a CPU it takes a process)")
    parser.add_argument("--beton", type=Path, help="also train from this file, at 128 px")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file; a folder: to DEVICE.json in it")
    parser.add_argument("--table", action="store_true", help="measure nothing: show what bench/results/ has")
    parser.add_argument("--markdown", type=report.marked(MARKER), help=f"put it between this file's <!-- {MARKER} -->")
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: there is no GPU here; --device=cpu measures the CPU")
    options.compile = not options.quick
    options.repeats = options.repeats or (2 if options.quick else 7)
    options.steps = 5 if options.device == "cuda" and not options.quick else 1  # of each in a turn
    options.memory = not (options.quick or options.no_memory)
    known = [name for name, task in TASKS.items() if task.on == options.device] + ["parts"]
    options.tasks = chosen("task", options.tasks, known, ["quick", "parts"] if options.quick else known)
    options.only = chosen("step", options.only, ON_CPU, ALL[:3] if options.quick else ON_CPU)
    return options


def describe_machine(device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return machine.describe() | {"device": name, "threads": torch.get_num_threads()}


@exits_cleanly
def main(argv=None):
    options = parse(argv)
    if not options.table:
        measure(options)
    table = summary(kept_results())
    if options.markdown:
        report.replace_between(options.markdown, MARKER, f"{table.title}\n\n{report.markdown(table)}")
    elif options.table:
        report.show(table)


def measure(options):
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
    if options.json and options.json.is_dir():
        options.json /= f"{described['device'].lower().replace(' ', '-')}.json"
    report.tell(grids(rows), rows, options.json, described)
    print(f"{described['device']}; {machine.in_words(described)}")


if __name__ == "__main__":
    main()
