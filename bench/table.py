"""The README's table of the training step, made from bench/results/*.json.

    python -m bench.table [--write README.md]

A column for each device that was measured, and one for GPUs as long as none was.
"""

import argparse
from pathlib import Path

from bench import report
from bench.gpu import RESULTS
from bench.step.tasks import TASKS
from ffcv_ops.errors import exits_cleanly

MARKER = "bench.step"
NOT_MEASURED = "not measured"
PARTS = (  # (what, task, its slower contender, its faster one)
    ("LAMB, ViT-S/16: timm's time / ours", "LAMB small", "timm", "ours"),
    ("the same, timm's multi-tensor one", "LAMB small", "timm-foreach", "ours"),
)


def results() -> dict[str, list[dict]]:
    """{device: rows} of all files with rows of steps."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        machine, rows = report.read_json(path)
        if any(row["task"] in TASKS for row in rows):
            title = machine["device"] if machine["device"] != "CPU" else f"{machine['cores']} cores of {machine['cpu']}"
            found.setdefault(title, []).extend(rows)
    if not any(task.on == "cuda" and row["task"] == name for rows in found.values() for row in rows
               for name, task in TASKS.items()):  # fmt: skip
        found["GPU"] = []
    return found


def grid(devices: dict[str, list[dict]]) -> report.Grid:
    lines = []
    for name, task in TASKS.items():
        for who in task.contenders:
            cells = [rate(rows, name, who) for rows in devices.values()]
            if set(cells) != {NOT_MEASURED} or task.on == "cuda":
                lines.append([f"{task.title}: {who}", *cells])
    for what, task, peer, ours in PARTS:
        lines.append([what, *(quotient(rows, task, peer, ours) for rows in devices.values())])
    return report.Grid("training step", ["images/s (times as fast is ours)", *devices], lines)


def rate(rows, task, who) -> str:
    """Images per second, and how many times as fast ours is in the same turns."""
    found = {(row["task"], row["name"]): row["value"] for row in rows}
    if (task, who) not in found:
        return NOT_MEASURED
    ratio = found.get((f"{task} ratio", who))
    return f"{found[task, who]:.3g}" + (f" ({ratio:.2f}x)" if ratio and who != "ours" else "")


def quotient(rows, task, peer, ours) -> str:
    found = {(row["task"], row["name"]): row["value"] for row in rows}
    if (task, peer) not in found:
        return NOT_MEASURED
    return f"{found[task, peer] / found[task, ours]:.1f}x"


@exits_cleanly
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help=f"put it into this file, between <!-- {MARKER} --> marks")
    options = parser.parse_args(argv)
    table = grid(results())
    if options.write:
        report.replace_between(options.write, MARKER, report.markdown(table))
    else:
        report.show(table)


if __name__ == "__main__":
    main()
