"""Rows -> tables: what a run shows, and the one of docs/performance.md, of all results that are kept."""

from bench import report
from bench.step.baselines import QUICK, TASKS
from bench.step.measure import PHASES

PARTS = (  # (what, task, the slower one, the faster one)
    ("LAMB, ViT-S/16: timm's time / ours", "LAMB small", "timm", "ours"),
    ("the same, timm's multi-tensor one", "LAMB small", "timm-foreach", "ours"),
)


def grids(rows: list[dict]) -> list[report.Grid]:
    """A table of the steps, a column for each measure, and one of the rest."""
    tasks = [row["task"] for row in rows if row["unit"] == "images/s" and row["task"] != "loading"]
    found = {(row["task"], row["name"]): row for row in rows}
    made = []
    for task in dict.fromkeys(tasks):
        measures = ["", " step", *(f" {phase}" for phase in PHASES), " ratio", " share", " memory"]
        header = ["", *(_header(rows, task + measure, measure) for measure in measures)]
        names = [row["name"] for row in rows if row["task"] == task]
        lines = [[who, *(_cell(found.get((task + measure, who))) for measure in measures)] for who in names]
        made.append(report.Grid(TASKS[task].title if task in TASKS else QUICK.title, header, lines))
    others = [row for row in rows if row["task"].endswith("ceiling") or not row["task"].startswith(tuple(tasks))]
    if others:
        lines = [[f"{row['task']}: {row['name']}", _cell(row), row["unit"]] for row in others]
        made.append(report.Grid("parts of a step", ["", "median", "unit"], lines))
    return made


def _header(rows, task, measure) -> str:
    units = [row["unit"] for row in rows if row["task"] == task]
    return f"{measure.strip()} {units[0]}".strip() if units else measure.strip()


def _cell(row) -> str:
    if row is None:
        return "-"
    one = row["n"] == 1 or row["lo"] == row["hi"]
    return f"{row['value']:.4g}" + ("" if one else f" [{row['lo']:.4g}-{row['hi']:.4g}]")


def kept_results() -> dict[str, list[dict]]:
    """{device: rows} of all files of bench/results with rows of steps."""
    found = {}
    for path in sorted(report.RESULTS.glob("*.json")):
        machine, rows = report.read_json(path)
        if any(row["task"] in TASKS for row in rows):
            title = machine["device"] if machine["device"] != "CPU" else f"{machine['cores']} cores of {machine['cpu']}"
            found.setdefault(title, []).extend(rows)
    return found


def summary(devices: dict[str, list[dict]]) -> report.Grid:
    """A column for each device, a line for what was measured on any."""
    values = [{(row["task"], row["name"]): row["value"] for row in rows} for rows in devices.values()]
    wanted = [(f"{task.title}: {who}", name, who) for name, task in TASKS.items() for who in task.steps]
    lines = [[title, *(_rate(found, task, who) for found in values)] for title, task, who in wanted]
    lines += [[title, *(_quotient(found, task, slow, fast) for found in values)] for title, task, slow, fast in PARTS]
    lines = [line for line in lines if set(line[1:]) != {"-"}]
    return report.Grid("Training step", ["images/s (times as fast is ours)", *devices], lines)


def _rate(found, task, who) -> str:
    """Images per second, and how many times as fast ours is in the same turns."""
    ratio = found.get((f"{task} ratio", who))
    words = f" ({ratio:.2f}x)" if ratio and who != "ours" else ""
    return f"{found[task, who]:.3g}{words}" if (task, who) in found else "-"


def _quotient(found, task, slow, fast) -> str:
    return f"{found[task, slow] / found[task, fast]:.1f}x" if (task, slow) in found else "-"
