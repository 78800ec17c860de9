"""One loader in a process of its own: its threads, memory and start-up are its own.

    python -m bench.loader_process NAME DATASET_FOLDER BATCH WORKERS

Requests come as JSON lines on standard input, answers go as JSON lines to standard output; whatever a library prints
goes to standard error. `LoaderProcess` is the other end.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from bench.dataset import ROOT, load
from bench.loaders import Unavailable, prepare_of
from bench.tasks import EVERY

TIMEOUT = 300  # seconds; stock FFCV compiles for half a minute on an idle core


class Failed(Exception):
    """A loader raised, died or did not answer. The message is one line."""


class LoaderProcess:
    """A loader's process. Requests raise Unavailable, or Failed; after a death or a timeout it is `closed`."""

    def __init__(self, name: str, dataset: Path, *, batch: int, workers: int, log: Path):
        self.log = log
        command = [sys.executable, "-m", "bench.loader_process", name]
        command += [str(dataset.absolute()), str(batch), str(workers)]
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )

    def prepare(self, task: str, while_waiting=None):
        """Builds its loader for a task. `while_waiting` is called again and again meanwhile."""
        self._ask({"do": "prepare", "task": task}, while_waiting)

    def seconds(self, batches: int, while_waiting=None) -> float:
        """Wall time of an epoch of this many batches."""
        return self._ask({"do": "run", "batches": batches}, while_waiting)["seconds"]

    @property
    def closed(self) -> bool:
        return self.process.returncode is not None

    def close(self):
        """Ends the process and those that it started."""
        with contextlib.suppress(BrokenPipeError):  # of a request that a dead process did not take
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()

    def _ask(self, request, while_waiting=None):
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; reading says so
        ends = time.monotonic() + TIMEOUT
        while not select.select([self.process.stdout], [], [], 0.1 if while_waiting else TIMEOUT)[0]:
            if time.monotonic() >= ends:
                self.close()
                raise Failed(f"no answer within {TIMEOUT} s; see {self.log}")
            if while_waiting:
                while_waiting()
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise Failed(f"the process died (status {self.process.returncode}); see {self.log}")
        answer = json.loads(line)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if "error" in answer:
            raise Failed(f"{answer['error']}; see {self.log}")
        return answer


def main():
    name, folder, batch, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    data, epoch = load(folder), None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        try:
            if request["do"] == "prepare":
                epoch = None  # the last task's memory goes first
                epoch = prepare_of(name)(EVERY[request["task"]], data, batch=batch, workers=workers)
            else:
                answer = {"seconds": run(epoch, request["batches"], batch)}
        except Unavailable as reason:
            answer = {"unavailable": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # the threads of some libraries do not end


def run(epoch, batches: int, batch: int) -> float:
    """Seconds for an epoch of `batches` batches, each looked at, from nothing to the last one."""
    images = seen = 0
    made = epoch(batches)
    began = time.perf_counter()
    for one_batch in made:
        if str(one_batch.dtype).removeprefix("torch.") != "uint8":
            raise TypeError(f"a batch is {one_batch.dtype}, not uint8")
        images += len(one_batch)
        seen += int(one_batch[::8, ::16, ::16].sum())
    seconds = time.perf_counter() - began
    if images != batches * batch or not seen:
        raise ValueError(f"{images} images came instead of {batches * batch}; some of their pixels sum to {seen}")
    return seconds


if __name__ == "__main__":
    main()
