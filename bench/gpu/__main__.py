"""What a GPU computes, and how fast. Each part has a limit of time; what fails or is late is said, the rest goes on.

    python -m bench.gpu check --json bench/results/gpu.json --markdown docs/performance.md      # under 5 minutes
    python -m bench.gpu bench --json bench/results/gpu.json --markdown docs/performance.md      # under 10 minutes
    python -m bench.gpu check --device=cpu --only=parity,bad-step                               # a rehearsal
    python -m bench.gpu table --markdown docs/performance.md

check: ceilings, batches while the device is behind, parity with the CPU, a bad step, a checkpoint, repeatability, and
where a step's time goes. Ends with status 1 where something is not right.
bench: steps beside others, as `python -m bench.step` measures them, a step fed by the loader, and profiles.
"""

import functools
import signal
import traceback
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import torch

from bench import dataset, report
from bench.gpu import checks
from bench.gpu.profile import profiled
from bench.report import chosen
from bench.step.__main__ import describe_machine
from bench.step.baselines import ALL, QUICK, TASKS
from bench.step.measure import measure_loading, measure_task
from config.parser import Parser
from ffcv_ops.errors import UserError, exits_cleanly
from training import distributed

MARKER = "bench.gpu"
NOT_MEASURED = "Not measured: no GPU has been at hand.\n"
PHOTOS = Path("data/photos_train.beton")
LARGE = TASKS["B192"]._replace(title="ViT-L/16, 192 px, batch 256, stochastic depth .45",
                               model="deit3_large_patch16_224", drop_path=0.45)  # fmt: skip


def parts_of(which: str, device: torch.device, beton: Path | None) -> dict:
    """{name: (seconds, function without arguments that returns rows)}, most valuable first."""
    gpu, on = device.type == "cuda", functools.partial
    task = {name: task if gpu else QUICK for name, task in {**TASKS, "L192": LARGE}.items()}
    profile = on(profiled, device=device, compiles=gpu, steps=20 if gpu else 2)
    if which == "check":
        return {
            "ceilings": (25, on(checks.ceilings, device)),
            "loader": (40, on(checks.loader, device, beton or PHOTOS)),
            "parity": (60, on(checks.parity, device)),
            "subset": (20, on(checks.parity, device, ("lamb",), drop_path="subset")),
            "bad-step": (10, on(checks.bad_step, device)),
            "checkpoint": (15, on(checks.checkpoint, device)),
            "repeatable": (60, on(checks.repeatable, device)),
            "profile": (60, on(profile, task["S224"], drop_path="exact")),
        }
    options = Namespace(only=ALL if gpu else ALL[:2], compile=gpu, memory=gpu, repeats=3 if gpu else 2, steps=3)
    return {
        "S224": (150, on(measure_task, "S224" if gpu else "quick", task["S224"], options, device)),
        "loading": (120, on(fed, beton, options, device)),
        "B192-profile": (60, on(profile, task["B192"], drop_path="subset")),
        "L192-profile": (90, on(profile, task["L192"], drop_path="subset")),
        "B192": (150, on(measure_task, "B192" if gpu else "quick", task["B192"], options, device)),
    }


def fed(beton: Path | None, options, device) -> list[dict]:
    """Steps that the loader feeds, from files like ImageNet's where none is given."""
    if beton is None:
        gpu = device.type == "cuda"
        made = dataset.make(dataset.ROOT / "build" / "bench_gpu", {"ours_jpg"}, train=4096 if gpu else 64, val=16)
        beton = made.betons["ours_jpg"].with_name("ours_jpg_train.beton")
    return measure_loading(beton, options, device)


@contextmanager
def limit(seconds: int):
    """TimeoutError when they are over."""

    def late(*_):
        raise TimeoutError(f"{seconds} s are over")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure(parts: dict, *, slack: int = 1) -> tuple[list[dict], list[str]]:
    """Rows of all parts, and the names of those that failed. slack: times the seconds that a part may take."""
    rows, failed = [], []
    for name, (seconds, part) in parts.items():
        report.say(f"{name}, {slack * seconds} s at most")
        try:
            with limit(slack * seconds):
                found = part()
        except Exception as error:  # the other parts are worth their minutes
            traceback.print_exc(limit=-3)
            report.say(f"{name}: {type(error).__name__}: {error}")
            failed.append(name)
            continue
        rows += found
        for row in found:
            report.say(" | ".join(_cells(row)))
    return rows, failed


def _cells(row: dict) -> list[str]:
    verdict = "" if "most" not in row else f"{'right' if checks.is_right(row) else 'WRONG'}, at most {row['most']:g}"
    return [row["task"], row["name"], f"{row['value']:.4g} {row['unit']}", verdict]


def written(rows: list[dict], about: dict, path: Path) -> None:
    """Rows go into the file; those that it has of other tasks and the same device stay."""
    same = path.exists() and report.read_json(path)[0].get("device") == about["device"]
    report.write_json(path, about, report.merged(path, rows) if same else rows)


def table(path: Path) -> str:
    """The file as text for a page."""
    if not path.exists():
        return NOT_MEASURED
    machine, rows = report.read_json(path)
    grid = report.Grid(machine["device"], ["what", "", "measured", "check"], [_cells(row) for row in rows])
    return f"{grid.title}, torch {machine['libraries']['torch']}, {machine['date']}\n\n{report.markdown(grid)}"


def parse(argv):
    parser = Parser(description=__doc__)
    parser.add_argument("which", choices=("check", "bench", "table"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with small sizes")
    parser.add_argument("--only", help="some of the parts, A,B")
    parser.add_argument("--beton", type=Path, help=f"images ({PHOTOS}; bench: files like ImageNet's, which it makes)")
    parser.add_argument("--json", type=Path, default=report.RESULTS / "gpu.json", help="%(default)s; not with cpu")
    parser.add_argument("--markdown", type=Path, help=f"put the table into this file, between <!-- {MARKER} --> marks")
    return parser.parse_args(argv)


@exits_cleanly
def main(argv=None) -> int:
    options, failed = parse(argv), []
    if options.which != "table":
        if options.device == "cuda" and not torch.cuda.is_available():
            raise UserError("there is no GPU here; --device=cpu rehearses")
        device = torch.device(options.device)
        torch.set_num_threads(distributed.threads())
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        parts = parts_of(options.which, device, options.beton)
        named = {name: parts[name] for name in chosen("part", options.only, parts, parts)}
        rows, failed = measure(named, slack=1 if device.type == "cuda" else 10)
        failed += [f"{row['task']}: {row['name']}" for row in rows if not checks.is_right(row)]
        if device.type == "cuda":
            written(rows, describe_machine(device), options.json)
        report.say(f"not right: {', '.join(failed)}" if failed else "all is right")
    if options.markdown:
        report.replace_between(options.markdown, MARKER, table(options.json))
    elif options.which == "table":
        print(table(options.json))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
