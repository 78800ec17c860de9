"""Can this machine train? Looks at everything a run needs and says the one line that mends what is wrong.

    python -m ffcv_ops.doctor                                          # the installation and the machine
    python -m ffcv_ops.doctor data/train.beton data/val.beton          # and the data: disk, memory
    python -m ffcv_ops.doctor --cfg recipes/vit_s_400ep.yaml           # and a recipe with its data

Exit status 1 when something makes training impossible (a fault), else 0. It starts wherever Python does: libraries are
imported in processes of their own, so that one that is missing, crashes or hangs is a line of the table.
"""

import argparse
import glob
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ffcv_ops import host, native

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
OK, WARNING, FAULT = "ok", "warning", "fault"
LIBRARIES = ("numpy", "numba", "torch", "torchvision", "timm", "ffcv", "cv2", "setuptools")
SECONDS = 180  # for an import from a cold disk
SYSTEM_PACKAGES = "g++ pkg-config libopencv-dev libturbojpeg0-dev libjpeg-dev"
REBUILD = f"apt-get install {SYSTEM_PACKAGES} && python -m pip install --force-reinstall --no-deps --no-cache-dir ffcv"
SETUP = "./setup.sh"
LEAST_FILES = 128  # a rank: its log, its data, libraries, sockets
LEAST_SHM = 2**30  # NCCL wants some hundred MB for eight ranks; Docker gives 64 MB
LEAST_DISK = 2 * GIB  # two checkpoints of a ViT-S, its weights, logs
IMAGES_PER_CORE = 1000  # of our loader, about (docs/performance.md)
HEADER = struct.Struct("<HHIQQ")  # of a .beton: version, fields, page size, samples, place of the table

# Both answer with a line of JSON behind MARK for each argument; libraries may print what they like.
MARK = "answer: "
SAY = f"""
import importlib, json, sys
def say(**answer):
    print("{MARK}" + json.dumps(answer), flush=True)
"""
IMPORTS = f"""{SAY}
for name in sys.argv[1:]:
    try:
        module, more = importlib.import_module(name), dict()
        if name == "torch":
            gpus = [module.cuda.get_device_properties(i) for i in range(module.cuda.device_count())]
            more = dict(cuda=module.version.cuda, gpus=[[gpu.name, gpu.total_memory] for gpu in gpus],
                        bf16=bool(gpus) and module.cuda.is_bf16_supported(),
                        nccl=module.distributed.is_nccl_available())
        say(**more)
    except BaseException as error:
        say(error=f"{{type(error).__name__}}: {{error}}".splitlines()[0])
"""
FILES = f"""{SAY}
from ffcv_ops.errors import BadInput
from ffcv_ops.fields import describe
for path in sys.argv[1:]:
    try:
        beton = describe(path)
        say(samples=beton.samples, classes=beton.classes)
    except BadInput as error:
        say(refused=str(error))
"""


class Finding(NamedTuple):
    """A row: what was looked at, how it is (OK, WARNING, FAULT), what was found, and the line that mends it."""

    what: str
    state: str
    found: str
    fix: str = ""


def main(argv=None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m ffcv_ops.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE.beton", help="data to look at")
    parser.add_argument("--cfg", metavar="RECIPE", help="a recipe to look at, with its data")
    options = parser.parse_args(argv)
    findings = list(examine(options.files, options.cfg))
    show(findings)
    return int(any(finding.state == FAULT for finding in findings))


def examine(files: Sequence[str], cfg: str | None) -> Iterator[Finding]:
    """All findings. A check that fails itself is a warning."""
    yield from _guarded("Python", python)
    yield from _guarded("system libraries", system_libraries)
    imported = answers(IMPORTS, LIBRARIES)
    for name in LIBRARIES:
        yield from _guarded(name, library, name, imported[name])
    yield from _guarded("other packages", other_packages)
    yield from _guarded("JPEG decoder", decoder)
    yield from _guarded("kernel cache", kernel_cache)
    yield from _guarded("cores", cores)
    yield from _guarded("memory", memory)
    yield from _guarded("open files", open_files)
    torch = {"gpus": [], "bf16": False, "nccl": False, "cuda": None} | imported["torch"]
    yield from _guarded("GPUs", gpu, torch)
    yield from _guarded("processes", processes, torch)
    yield from _guarded("/dev/shm", shared_memory, len(torch["gpus"]))
    run = None
    if cfg:
        for row in _guarded("recipe", read_recipe, cfg):
            if isinstance(row, Finding):
                yield row
            else:
                run = row
    yield from _guarded("disk", disk, Path(run.log.out if run else "runs"))
    paths = {name: _paths(name) for name in (*files, *(_files_of(run) if run else ()))}
    known = answers(FILES, (name for name in paths if paths[name]))
    for name in paths:
        yield from _guarded(name, beton, name, paths[name], known.get(name, {}), "error" not in imported["ffcv"])
    if any(paths.values()):
        yield from _guarded("data and memory", data_in_memory, {path for found in paths.values() for path in found})
    if run:
        yield from _guarded("recipe", recipe_fits, run, known, torch)


def _guarded(what, check, *arguments):
    try:
        yield from check(*arguments)
    except Exception as error:  # a check that cannot look is no reason not to show the others
        yield Finding(what, WARNING, f"could not be looked at: {type(error).__name__}: {error}")


def answers(code: str, arguments) -> dict[str, dict]:
    """What a process that runs `code` answers to each argument; {"error": why} for one on which it crashed or hung,
    after which the others are asked again."""
    found, left = {}, list(arguments)
    while left:
        try:
            command = [sys.executable, "-c", code, *left]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS)
            said, why = done.stdout, _last_line(done.stderr) or f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired as hung:
            said, why = hung.stdout or b"", f"nothing happened for {SECONDS} s"
        lines = [line[len(MARK) :] for line in said.decode(errors="replace").splitlines() if line.startswith(MARK)]
        found |= {name: json.loads(line) for name, line in zip(left, lines, strict=False)}
        if len(lines) < len(left):
            found[left[len(lines)]] = {"error": why}
        left = left[len(lines) + 1 :]
    return found


def _last_line(said):
    return next((line for line in reversed(said.decode(errors="replace").splitlines()) if line.strip()), "")


# --- the installation ----------------------------------------------------------------------------------------------


def _project():
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python():
    here, wanted = platform.python_version(), _project()["requires-python"]
    fix = "make test PYTHON=python3.12 (a virtual environment with it)"
    state = OK if _within(here, wanted) else FAULT
    yield Finding("Python", state, f"{here}, {sys.executable}" + ("" if state == OK else f"; needs {wanted}"), fix)
    if sys.platform != "linux":
        yield Finding("system", FAULT, f"{sys.platform}; ffcv is for Linux", "use Linux, or WSL 2 on Windows")


def _within(version, wanted):
    """Whether a version is in a range such as ">=3.11,<3.13"; rough where the package `packaging` is missing."""
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(wanted).contains(version, prereleases=True)
    except ImportError:
        numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
        bounds = re.findall(r"(>=|<)(\d+)(?:\.(\d+))?", wanted)
        limits = [(sign, [int(major), int(minor or 0)]) for sign, major, minor in bounds]
        return all(numbers >= limit if sign == ">=" else numbers < limit for sign, limit in limits)


def system_libraries():
    from ctypes.util import find_library

    compiler = (os.environ.get("CC") or "cc").split()[0]
    missing = [] if shutil.which(compiler) else [f"a C compiler ({compiler})"]
    missing += [name for name in ("turbojpeg", "opencv_core", "jpeg") if not find_library(name)]
    found = "compiler, turbojpeg, OpenCV and jpeg found" if not missing else "not found: " + ", ".join(missing)
    yield Finding("system libraries", WARNING if missing else OK, found, f"apt-get install {SYSTEM_PACKAGES}")


def library(name, answer):
    """A library: installed, in the range of pyproject.toml, importable."""
    package = {"cv2": "opencv-python"}.get(name, name)
    wanted, version, error = _ranges().get(package), _version(package), answer.get("error")
    if version is None and error:
        yield Finding(name, FAULT, f"not installed ({error:.100})", SETUP)
    elif error:
        yield Finding(name, FAULT, f"{version}, does not import: {error:.200}", _mend(name, error))
    elif wanted and version and not _within(version, wanted):
        yield Finding(
            name, FAULT, f"{version}; needs {wanted}", f"python -m pip install -c constraints.txt '{package}{wanted}'"
        )
    else:
        yield Finding(name, OK, version or "found")


def _ranges():
    """{"torch": ">=2.6"} of pyproject.toml."""
    parts = (re.match(r"([\w-]+)(.*)", entry) for entry in _project()["dependencies"])
    return {part[1]: part[2] for part in parts}


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _mend(name, error):
    """The line that mends an import that fails."""
    if "distutils" in error:
        return "python -m pip install setuptools"
    if "torchvision::nms" in error:
        return "python -m pip install --force-reinstall -c constraints.txt torch torchvision"
    if name == "ffcv" and ".so" in error:
        return REBUILD
    missing = re.search(r"No module named '(\w+)", error)
    if missing and missing[1] != name:
        return f"python -m pip install -c constraints.txt {missing[1]}"
    return f"python -m pip install --force-reinstall -c constraints.txt {name}"


def other_packages():
    """Everything else that pyproject.toml names."""
    ranges = {name: wanted for name, wanted in _ranges().items() if name not in LIBRARIES}
    versions = {name: _version(name) for name in ranges}
    wrong = [name for name in ranges if not versions[name] or not _within(versions[name], ranges[name])]
    found = ", ".join(f"{name} {versions[name] or 'missing'}" for name in wrong) or f"{len(ranges)} in range"
    yield Finding("other packages", FAULT if wrong else OK, found, SETUP)


def decoder():
    path, why = native.library()
    found = f"regions, {path}" if path else f"whole images, which is slower: {why}"
    yield Finding("JPEG decoder", OK if path else WARNING, found, f"apt-get install {SYSTEM_PACKAGES}")


def kernel_cache():
    folder = native.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            yield Finding("kernel cache", OK, f"{folder} is writable")
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror}; every start would compile for a minute, or fail"
        yield Finding("kernel cache", FAULT, found, "export XDG_CACHE_HOME=/a/folder/you/may/write")


# --- the machine ---------------------------------------------------------------------------------------------------


def cores():
    usable, limit = host.cores()
    found = f"{usable} of {os.cpu_count()} usable"
    if limit is not None and limit < usable:
        fix = f"--data.workers={max(int(limit), 1)}, or give the container more (docker run --cpus=...)"
        yield Finding("cores", WARNING, f"{found}, but the control group limits them to {limit:g}", fix)
    else:
        yield Finding("cores", OK, found)


def memory():
    total, available, limit = host.memory()
    found = f"{total / GIB:.1f} GiB, {available / GIB:.1f} available"
    found += f", control group: {limit / GIB:.1f} GiB" if limit else ""
    tight = min(available, limit or available) < 2 * GIB
    yield Finding("memory", WARNING if tight else OK, found, "end other programs, or raise the container's limit")


def open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < LEAST_FILES
    most = "unlimited" if hard == resource.RLIM_INFINITY else hard
    yield Finding("open files", FAULT if few else OK, f"{soft} at a time (may be raised to {most})", "ulimit -n 4096")


def gpu(torch):
    """What the driver lists and what torch sees."""
    ask = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listed = []
    if shutil.which(ask[0]):
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=60)
        listed = asked.stdout.strip().splitlines()
        if asked.returncode:
            broken = f"nvidia-smi: {(asked.stdout + asked.stderr).strip().splitlines()[-1]:.100}"
            yield Finding("GPU driver", FAULT, broken, "install or reload the driver; in Docker: run --gpus=all")
            return
    seen = torch["gpus"]
    if seen:
        names = ", ".join(f"{name} {size / GIB:.0f} GiB" for name, size in seen)
        found = f"{len(seen)}: {names}; CUDA {torch['cuda']}, " + ("bf16" if torch["bf16"] else "no bf16, so fp16")
        yield Finding("GPUs", OK, found)
        if len(seen) < len(listed):
            hidden = f"torch sees {len(seen)} of {len(listed)}"
            yield Finding("GPUs", WARNING, hidden, "unset CUDA_VISIBLE_DEVICES, if that is not meant")
    elif listed:
        why = "torch is a build without CUDA" if torch["cuda"] is None else f"torch has CUDA {torch['cuda']}"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why += f", CUDA_VISIBLE_DEVICES={hidden!r}" if hidden is not None else ""
        fix = "unset CUDA_VISIBLE_DEVICES" if hidden is not None else "update the driver, or install torch for its CUDA"
        yield Finding("GPUs", FAULT, f"the driver lists {len(listed)} ({listed[0]}), torch sees none: {why}", fix)
    else:
        yield Finding("GPUs", OK, "none; runs take the CPU, which is enough for recipes/demo.yaml")


def processes(torch):
    """What torchrun and NCCL would be told by this shell."""
    told = {
        name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name in os.environ
    }
    if os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        found = ", ".join(f"{name}={value}" for name, value in told.items())
        fix = "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"
        yield Finding("processes", WARNING, f"{found} in this shell: a run would wait for the others", fix)
    nccl = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")]
    if nccl:
        yield Finding("NCCL", OK, ", ".join(nccl))
    if len(torch["gpus"]) > 1 and not torch["nccl"]:
        found = "torch is built without it; several GPUs cannot work together"
        yield Finding("NCCL", FAULT, found, "python -m pip install --force-reinstall -c constraints.txt torch")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and 0 < int(threads) < host.cores()[0] and not torch["gpus"]:
        yield Finding(
            "threads", WARNING, f"OMP_NUM_THREADS={threads}: a model on the CPU uses no more", "unset OMP_NUM_THREADS"
        )


def shared_memory(gpus):
    size = shutil.disk_usage("/dev/shm").total
    small = size < LEAST_SHM and gpus > 1
    fix = "docker run --shm-size=8g ..., or mount -o remount,size=8g /dev/shm"
    yield Finding("/dev/shm", WARNING if small else OK, f"{size / GIB:.2f} GiB", fix)


def disk(folder):
    """Room for checkpoints where a run would write."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, kind = shutil.disk_usage(there).free, host.file_system_of(there)
    found = f"{there}: {free / GIB:.1f} GiB free, {kind}"
    if not os.access(there, os.W_OK):
        yield Finding("disk", FAULT, f"{there} cannot be written", "--log.out=/a/folder/you/may/write")
    else:
        yield Finding("disk", WARNING if free < LEAST_DISK else OK, found, "make room, or --log.out=/another/disk")


# --- data and recipe -----------------------------------------------------------------------------------------------


def _size(count):
    """Bytes in words."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def _samples(path):
    """Number of samples by the header, without ffcv."""
    with path.open("rb") as file:
        return HEADER.unpack(file.read(HEADER.size))[3]


def _paths(name):
    """The files of a data set: one, or those that match a pattern."""
    found = map(Path, sorted(glob.glob(name)) if "*" in name else [name])
    return [path for path in found if path.is_file()]


def beton(name, paths, known, ffcv_works):
    """A .beton, or the shards of a pattern as one: whether it opens, and how fast the disk of its largest file is."""
    if not paths:
        yield Finding(name, FAULT, "no such file", "python write_datasets.py --data.source=FOLDER")
        return
    if "refused" in known:
        yield Finding(name, FAULT, known["refused"], "write or copy it again")
        return
    size, samples = sum(path.stat().st_size for path in paths), known.get("samples") or sum(map(_samples, paths))
    found = f"{samples:,} images, {_size(size)}" + (f", {known['classes']:,} classes" if "classes" in known else "")
    if "error" in known and ffcv_works:
        yield Finding(name, WARNING, f"{found}; {known['error']:.200}", "python -m pytest tests/ffcv_ops")
    else:
        yield Finding(name, OK, found)
    largest = max(paths, key=lambda path: path.stat().st_size)
    speed, direct = host.read_speed(largest)
    rate, wanted = speed / (size / samples), IMAGES_PER_CORE * host.cores()[0]
    found = f"{host.file_system_of(largest)}, {speed / 2**20:,.0f} MiB/s, {rate:,.0f} images/s"
    found += "" if direct else " (through the page cache)"
    slow = rate < wanted
    found += f"; the cores could take about {wanted:,}" if slow else ""
    fix = f"cp {name} to a local SSD; where it is larger than memory: --data.shuffle_pages=64 --data.cache=process"
    yield Finding("its disk", WARNING if slow else OK, found, fix)


def data_in_memory(paths):
    total, _, limit = host.memory()
    most, size = min(total, limit or total), sum(path.stat().st_size for path in paths)
    found = f"{_size(size)} of files, {_size(most)} of memory"
    if size < 0.8 * most:
        yield Finding("data and memory", OK, f"{found}: from the second epoch on the page cache holds all")
    else:
        fix = "--data.shuffle_pages=64 --data.cache=process (reads in runs of pages; docs/data.md)"
        yield Finding("data and memory", WARNING, f"{found}: every epoch reads from the disk", fix)


def read_recipe(cfg):
    """First the run itself, then the findings."""
    from ffcv_ops.errors import BadInput
    from training import recipe

    try:
        run = recipe.load(cfg)
    except BadInput as error:
        yield Finding("recipe", FAULT, str(error), "python train_imagenet.py --help")
        return
    yield run
    stages = ", ".join(f"{stage.name} ({stage.resolution} px, batch {stage.batch})" for stage in run.stages)
    yield Finding("recipe", OK, f"{cfg}: {stages}")


def _files_of(run):
    given = (run.data.train, run.data.val, run.data.finetune_train, run.data.finetune_val)
    return [name for name in given if name]


def recipe_fits(run, known, torch):
    """Whether data, GPUs and recipe go together."""
    gpus = len(torch["gpus"])
    if run.speed.device == "cuda" and not gpus:
        yield Finding("recipe", FAULT, "speed.device is cuda, and torch sees no GPU", "--speed.device=auto")
    for stage in run.stages:
        name = run.data.train if stage.data == "main" else run.data.finetune_train
        samples = known.get(name, {}).get("samples", 0)
        if samples and stage.batch > samples:
            from ffcv_ops.order import smaller_batch  # these samples were counted through ffcv, so Numba works

            fix = f"{smaller_batch(stage, samples)}, and a lower --stage.lr"
            yield Finding(f"stage {stage.name}", FAULT, f"batch {stage.batch} is more than {samples} images", fix)
        elif gpus and stage.batch % gpus:
            fix = f"torchrun --nproc-per-node={max(n for n in range(1, gpus + 1) if stage.batch % n == 0)} ..."
            yield Finding(f"stage {stage.name}", WARNING, f"batch {stage.batch} cannot be shared by {gpus} GPUs", fix)
        elif gpus:
            found = f"{stage.batch // gpus} samples of a batch on each of {gpus} GPUs, in pieces that fit"
            yield Finding(f"stage {stage.name}", OK, found)


# --- the table -----------------------------------------------------------------------------------------------------


def show(findings: Sequence[Finding]) -> None:
    """The table, then the lines that mend what is not well."""
    print("\n".join(_table(findings)))
    wrong = [finding for finding in findings if finding.state != OK]
    for finding in sorted(wrong, key=lambda finding: finding.state != FAULT):
        print(f"\n{finding.state}: {finding.what}: {finding.found}" + (f"\n    {finding.fix}" if finding.fix else ""))
    faults = sum(finding.state == FAULT for finding in findings)
    print(f"\nfaults: {faults}, warnings: {len(wrong) - faults}" + ("" if faults else "; this machine can train"))


def _table(findings):
    """Its lines; without colours and wrapping where rich is missing."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return [f"{state:9}{what:18}{found}" for what, state, found, _ in findings]
    console = Console(width=min(shutil.get_terminal_size((110, 24)).columns, 140), highlight=False, markup=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    styles = {OK: None, WARNING: "yellow", FAULT: "bold red"}
    for what, state, found, _ in findings:
        table.add_row(state, what, found, style=styles[state])
    with console.capture() as drawn:
        console.print(table)
    return [line.rstrip() for line in drawn.get().splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
