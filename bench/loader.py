"""Which loader makes uint8 training batches fastest on the CPU? Ours, FFCV, torchvision, timm, Pillow, SPDL, DALI.

    python -m bench.loader [--quick] [--tasks A,B] [--only ours,ffcv] [--json FILE] [--plot FILE] [--markdown FILE]

The same JPEGs (bench/dataset.py) for all, on all cores that the process may use, in batches of 128. Every loader is
a process of its own that stays; in a task they are interleaved, one short epoch each in a round, so that a machine
whose speed drifts is the same to all of them. Tasks are minutes apart: compare within a task. Medians, in brackets the
range. A ratio is the median of those of the rounds.
"""

import collections
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import dataset, loader_views, machine, report
from bench.loader_process import Failed, LoaderProcess
from bench.loaders import LOADERS, Unavailable, is_baseline, takes_part
from bench.report import chosen, say
from bench.tasks import EVERY
from config.parser import Parser
from ffcv_ops import host
from ffcv_ops.errors import UserError, exits_cleanly

LEAST_BATCHES = 2  # of an epoch, for each core; a shorter one would measure how it starts
STARTED = ("ours", "ffcv", "torchvision-v2", "dali")  # start-up and memory; pillow and timm are as torchvision-v2
START_TASK, START_BATCHES = "B", 8
MARKER = "bench.loader"


class Comparison:
    """The loaders that are still in, and what went wrong with the others (task and name: why)."""

    def __init__(self, names, options):
        self.options, self.failures = options, {}
        self.processes = {name: start(name, options) for name in names}

    def attempt(self, name, task, action):
        """action(loader's process), or None where it failed or cannot take part."""
        try:
            return action(self.processes[name])
        except Unavailable as reason:
            say(f"{name} is left out: {reason}")
            self.processes.pop(name).close()
        except Failed as error:
            say(f"{name} failed in {task}: {error}")
            self.failures[f"{task} {name}"] = str(error)
            if self.processes[name].closed:
                del self.processes[name]

    def close(self):
        for process in self.processes.values():
            process.close()


def start(name, options):
    logs = options.dataset / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{name}.log"
    return LoaderProcess(name, options.dataset, batch=options.batch, workers=host.usable_cores(), log=log)


def measure(options):
    """Returns machine, rows, and what failed."""
    began = time.monotonic()
    betons = {LOADERS[name][1]["beton"] for name in options.only if "beton" in LOADERS[name][1]}
    made = dataset.make(options.dataset, betons, train=options.images, val=options.images // 4)
    say(f"{options.dataset}: {options.images} JPEGs of {made.mean_bytes / 1000:.1f} KB on average")
    rows = size_rows(made)
    comparison = Comparison(options.only, options)
    try:
        for task in options.tasks:
            rows += measure_task(comparison, task, options)
    finally:
        comparison.close()
    if options.startup:
        for name in STARTED:
            if name in comparison.processes:
                rows += start_rows(name, options, comparison.failures)
    say(f"took {time.monotonic() - began:.0f} s")
    return machine.describe(), rows, comparison.failures


def size_rows(made):
    """Sizes of the JPEG files and of what each .beton stores."""
    files = made.files["train"]
    sizes = {"jpeg files": sum(file.stat().st_size for file in files)}
    for name, path in made.betons.items():
        if isinstance(path, Path):
            sizes[name] = dataset.stored_bytes(path.with_name(f"{path.name}_train.beton"))
    return [report.row("size", name, size / 1000 / len(files), "KB/image") for name, size in sizes.items()]


def measure_task(comparison, task, options):
    """Prepares the loaders, which compile meanwhile, two at a time; then they are interleaved. Returns rows."""
    names = [name for name in comparison.processes if takes_part(name, EVERY[task])]

    def prepare(name):
        return comparison.attempt(
            name, task, lambda process: (process.prepare(task), process.seconds(host.usable_cores()))
        )

    say(f"{task}: preparing {', '.join(names)}")
    with ThreadPoolExecutor(host.usable_cores()) as pool:
        try:
            prepared = list(pool.map(prepare, names))
        except KeyboardInterrupt:
            comparison.close()  # the threads wait for these processes
            raise
    running = {name: [] for name, ready in zip(names, prepared, strict=True) if ready}
    counts = dict.fromkeys(running, host.usable_cores())
    for round_ in range(options.repeats + 1):  # the first one is short and tells how long an epoch must be
        order = collections.deque(running)
        order.rotate(-round_)
        for name in order:
            seconds = comparison.attempt(name, task, lambda process, name=name: process.seconds(counts[name]))
            if seconds is None:
                del running[name]
            elif round_ == 0:
                counts[name] = epoch_batches(counts[name] / seconds * options.seconds)
            else:
                running[name].append(counts[name] * options.batch / seconds)
    rows = [report.row(task, name, rates, "images/s") for name, rates in running.items()]
    rows += ratio_rows(task, running)
    say(f"{task}: " + ", ".join("{name} {value:.4g} {unit}".format(**row) for row in rows))
    return rows


def ratio_rows(task, rates):
    """Ours to the fastest baseline, round by round: what slows the machine for a while slows both."""
    baselines = [name for name in rates if is_baseline(name)]
    if not baselines:
        return []
    best = max(baselines, key=lambda name: statistics.median(rates[name]))
    return [
        report.row(
            f"{task} ratio", name, [ours / other for ours, other in zip(rates[name], rates[best], strict=True)], best
        )
        for name in rates
        if name.startswith("ours") and not name.endswith("-raw")  # which reads other bytes than the baselines
    ]


def epoch_batches(wanted: float) -> int:
    """About `wanted`, as many for each core, so that none is idle in the end."""
    return max(round(wanted / host.usable_cores()), LEAST_BATCHES) * host.usable_cores()


def start_rows(name, options, failures):
    """Two processes: of the first the peak memory, up to the end of an epoch; of the second, whose caches are warm,
    the time from its start to its first batch."""
    peak = 0

    def sample():
        nonlocal peak
        peak = max(peak, machine.proportional_set_size(process.process.pid))

    try:
        for batches, while_waiting in ((START_BATCHES, sample), (1, None)):
            began = time.perf_counter()
            process = start(name, options)
            try:
                process.prepare(START_TASK, while_waiting)
                process.seconds(batches, while_waiting)
                seconds = time.perf_counter() - began
            finally:
                process.close()
    except (Failed, Unavailable) as error:
        failures[f"start-up {name}"] = str(error)
        return []
    say(f"start-up: {name} {seconds:.1f} s, {peak / 1e6:.0f} MB")
    return [report.row("first batch", name, seconds, "s"), report.row("peak memory", name, peak / 1e6, "MB")]


def parse(argv):
    parser = Parser(description=__doc__)
    tasks = list(EVERY)
    parser.add_argument("--quick", action="store_true", help="tasks A and D, 128 images, short epochs, no start-up")
    parser.add_argument("--tasks", help=f"some of {','.join(tasks)}")
    parser.add_argument("--only", help=f"some of {','.join(LOADERS)}")
    parser.add_argument("--repeats", type=int, help="epochs of each loader in each task (5; quick: 2)")
    parser.add_argument("--seconds", type=float, help="of an epoch, about (1.2; quick: 0.5)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, help="of the dataset, and a quarter of it for E (512; quick: 128)")
    parser.add_argument("--dataset", type=Path, help="cache folder (build/bench_dataset; quick: build/bench_quick)")
    parser.add_argument("--no-startup", action="store_true", help="leave out start-up time and peak memory")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the tasks: .png or .svg")
    parser.add_argument("--markdown", type=report.marked(MARKER), help=f"put the tables between its <!-- {MARKER} -->")
    parser.add_argument("--table", action="store_true", help="measure nothing: show what is in the --json file")
    options = parser.parse_args(argv)
    quick = options.quick
    options.tasks = chosen("task", options.tasks, tasks, ["A", "D", "decode"] if quick else tasks)
    options.only = chosen("loader", options.only, list(LOADERS), list(LOADERS))
    options.repeats = options.repeats or (2 if quick else 5)
    options.seconds = options.seconds or (0.5 if quick else 1.2)
    options.images = options.images or (128 if quick else 512)
    options.dataset = options.dataset or dataset.ROOT / "build" / ("bench_quick" if quick else "bench_dataset")
    options.startup = not (quick or options.no_startup)
    if options.images // 4 < len(dataset.PHOTOS):
        least = 4 * len(dataset.PHOTOS)
        raise UserError(f"--images={options.images} is too few; give {least} or more, a quarter of which is for E")
    if options.table and not options.json:
        raise UserError("--table shows the results in a --json FILE; name that file")
    return options


@exits_cleanly
def main(argv=None):
    options = parse(argv)
    if options.table:
        about, rows = report.read_json(options.json)
        failures = {}
    else:
        about, rows, failures = measure(options)
        if options.json:
            report.write_json(options.json, about, rows)
    grids = loader_views.tables(rows)
    for grid in grids:
        report.show(grid)
    if options.markdown:
        report.put_into(options.markdown, MARKER, grids, about)
    if options.plot:
        loader_views.plot(rows, machine.in_words(about)).savefig(options.plot)
    if failures:
        say("\n".join(f"failed: {place}: {reason}" for place, reason in failures.items()))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
