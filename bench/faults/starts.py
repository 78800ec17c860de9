"""Runs under odd conditions: no home, a stream that cannot show a letter or that nobody reads, limits of the process,
numbers out of all proportion, odd weights, and Ctrl-C five times in a row."""

import contextlib
import os
import pwd
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.faults import betons
from bench.faults.runs import LIMIT, command, same_weights, steps, undisturbed, wait_until
from bench.faults.suite import Fault, each, finished, judged
from bench.processes import Server
from config.options import options_of
from config.schema import SECTIONS

NUMBERS = ("1e300", "2147483648", "1e-300", "-1", "nan", "inf")
LIMITS = {"RLIMIT_NOFILE": (10, 20, 40, 80), "RLIMIT_AS": (2**31, 2**32, 2**33), "RLIMIT_FSIZE": (0, 2**20)}
STORMS = (1, 3, 5, 9)  # steps after which Ctrl-C is pressed


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    data = betons.write(folder, server)
    recipe, whole = undisturbed(server, folder, data, epochs=1)
    cases = [(name, prepare, *given) for name, (prepare, *given) in CONDITIONS.items()]
    cases += [(f"{name} {most}", _limited, name, most) for name, all_of in LIMITS.items() for most in all_of]
    keys = [(section, name) for section, cls in SECTIONS.items() for name, (kind, _) in options_of(cls).items()
            if "int" in str(kind) or "float" in str(kind)]  # fmt: skip
    cases += [(f"{section}.{name}={number}".removeprefix("."),) for section, name in keys for number in NUMBERS]
    weights = load_file(whole / "pretrain_32.safetensors")
    for name, change in WEIGHTS.items():
        torch.save(change(weights), folder / f"{name}.pt")
        cases.append((name,))
    cases += [(f"Ctrl-C after step {number}",) for number in STORMS]

    def start(name: str, prepare: Callable = int, *given) -> tuple[str, str]:
        runs = whole.parent / name.replace("/", "_")
        words = command(recipe, data, runs, "run")
        words += [f"--{name}"] if "=" in name else [f"--init={folder / name}.pt"] if name in WEIGHTS else []
        if name.startswith("Ctrl-C"):
            return _struck(server, words, runs / "run", whole, int(name.split()[-1]))
        ended = finished(server.start((_start, words, prepare, *given)), LIMIT)
        if "Traceback" in ended.text:
            return "crash", ended.last_line
        same = "=" not in name and name not in WEIGHTS
        return judged(ended, right=lambda _: same_weights(whole, runs / "run") if same else _finite(runs / "run"))

    return [Fault(name, *outcome) for (name, *_), outcome in each(cases[:: 30 if quick else 1], start)]


def _start(words: list[str], prepare: Callable, *given):
    prepare(*given)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def _struck(server: Server, words: list[str], run: Path, whole: Path, step: int) -> tuple[str, str]:
    process = server.start(words)
    wait_until(process, lambda: steps(run) >= step)
    for _ in range(5):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    ended = finished(process, LIMIT)
    if ended.status != 130 or ended.text.count("interrupted") != 1 or "Traceback" in ended.text:
        return ("hang" if ended.status is None else "crash"), f"status {ended.status}: {ended.last_line}"
    again = finished(server.start(words), 5 * LIMIT)  # all that is left of the run
    kept = again.status == 0 and same_weights(whole, run)
    return ("detected", ended.last_line) if kept else ("lost", f"status {again.status}: {again.last_line}")


def _finite(run: Path) -> bool:
    return all(value.isfinite().all() for value in load_file(run / "model.safetensors").values())


# --- conditions, in the process that is about to train -------------------------------------------------------------


def _no_home():
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)
    pwd.getpwuid = {}.__getitem__  # raises KeyError, as it does for a user without an entry


def _home_is_a_file():
    os.environ |= {"HOME": "/dev/null", "XDG_CACHE_HOME": ""}


def _encoded(encoding):
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding, errors="strict")


def _nobody_reads():
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, sys.stdout.fileno())


def _no_compiler():
    import numba

    numba.config.DISABLE_JIT = 1


def _limited(name, most):
    resource.setrlimit(getattr(resource, name), (most, most))


CONDITIONS = {
    "neither home nor entry in passwd": (_no_home,),
    "the home is a file": (_home_is_a_file,),
    "streams in ASCII": (_encoded, "ascii"),
    "streams in Latin-1": (_encoded, "latin-1"),
    "nobody reads stdout": (_nobody_reads,),
    "NUMBA_DISABLE_JIT": (_no_compiler,),
}
WEIGHTS = {
    "names that are numbers": lambda weights: dict(enumerate(weights.values())),
    "complex weights": lambda weights: {key: value.to(torch.complex64) for key, value in weights.items()},
    "integer weights": lambda weights: {key: value.int() for key, value in weights.items()},
    "8 bits": lambda weights: {key: value.to(torch.float8_e4m3fn) for key, value in weights.items()},
    "nested twice": lambda weights: {"model": {"model": weights}},
    "module. and state_dict": lambda weights: {"state_dict": {f"module.{key}": v for key, v in weights.items()}},
    "not a number": lambda weights: {key: value * torch.nan for key, value in weights.items()},
    "without places": lambda weights: weights | {"pos_embed": torch.zeros(1, 0, 128)},
    "places of another model": lambda weights: weights | {"pos_embed": torch.zeros(1, 10, 7)},
}
