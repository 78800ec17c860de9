"""Commands and functions in processes of their own, without the seconds of imports before each.

    python -m bench.processes DESCRIPTOR      # the server, on this socket; `Server` starts it

The server has imported what the programs import and forks for each request; a fork is safe because no other thread is
at work in it. What a library reads from the environment when it is imported, it has read from the server's.
"""

import atexit
import contextlib
import gc
import importlib
import os
import pickle
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("config", "ffcv_ops", "training", "conversion", "report")
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # CUDA that was asked for before a fork does not work after it
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
LARGEST_REQUEST = 2**20  # bytes

Job = list[str] | tuple  # the words of `python WORDS`, or a module's function and its arguments


class Server:
    """The process that forks. `start` may be called from several threads."""

    def __init__(self):
        self._control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        environment = os.environ | ONE_THREAD | WITHOUT_GPU | {"PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "bench.processes", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(self, job: Job, *, cwd: Path = ROOT, **environment: str) -> "Process":
        """Starts a command or a function; `environment` is added to this process's."""
        return Process(self._control, job, cwd, os.environ | WITHOUT_GPU | environment)

    def close(self):
        self._control.close()
        self._process.kill()  # it may be at its imports still, and has nothing to put in order
        self._process.wait()


class Process:
    """A started job, with what its callers need of subprocess.Popen. It leads a process group of its own."""

    def __init__(self, control: socket.socket, job: Job, cwd: Path, environment: dict[str, str]):
        self._report, report = socket.socketpair(type=socket.SOCK_SEQPACKET)
        (stdin, to), (of, stdout) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(to, "w"), os.fdopen(of, errors="replace")
        # files where a pipe would be full before it is read
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115
        self._output, self._reader = [], None
        job = job if isinstance(job, tuple) else [str(word) for word in job]
        given = [report.fileno(), stdin, stdout, self._errors.fileno(), self._answer.fileno()]
        socket.send_fds(control, [pickle.dumps((job, str(cwd), environment))], given)
        report.close()
        os.close(stdin)
        os.close(stdout)
        self.args, self.pid, self.returncode = job, int(self._report.recv(32)), None

    def poll(self) -> int | None:
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ended_within(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _ended_within(self, seconds):
        if self.returncode is None and select.select([self._report], [], [], seconds)[0]:
            self.returncode = int(self._report.recv(32))
        return self.returncode

    def communicate(self, given: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), once it has ended."""
        if given is not None:
            self.stdin.write(given)
        self.stdin.close()
        if self._reader is None:
            self._reader = threading.Thread(target=lambda: self._output.append(self.stdout.read()), daemon=True)
            self._reader.start()
        self.wait(timeout)
        self._reader.join()
        self._errors.seek(0)
        return self._output[0], self._errors.read()

    @property
    def value(self):
        """What the function returned; None where it did not return."""
        self._answer.seek(0)
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            return pickle.load(self._answer)

    def send_signal(self, number: int):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def kill_group(self):
        """Ends it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


# --- the server ----------------------------------------------------------------------------------------------------


def _import_everything():
    """All modules of PACKAGES; some need libraries that are not installed everywhere."""
    for name in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)


def _next_job(control: socket.socket) -> tuple[Job, int]:
    """Forks for each request until the other side is gone. Returns in the new processes: the job, and the descriptor of
    the file for what a function returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers end by themselves
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, LARGEST_REQUEST, 5)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _kept(*pickle.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _kept(job: Job, folder: str, environment: dict, report: int, *others: int) -> tuple[Job, int]:
    """Forks once more: this process, the keeper, waits for the other and tells how it ended; only a parent can."""
    process = os.fork()
    if process:
        with contextlib.suppress(OSError):  # both set it: whoever reads the number may signal the group at once
            os.setpgid(process, process)
        for descriptor in others:
            os.close(descriptor)
        os.write(report, b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(OSError):  # nobody wants to know any more
            os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.setpgid(0, 0)
    os.close(report)
    *streams, answer = others
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return job, answer


def _run(job: Job, answer: int) -> int:
    """Does the job. Returns the exit status."""
    try:
        if isinstance(job, tuple):
            function, *arguments = job
            with os.fdopen(answer, "wb") as file:
                pickle.dump(function(*arguments), file)
        elif job[0] == "-m":
            sys.argv = job[1:]
            runpy.run_module(job[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = job
            runpy.run_path(job[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _import_everything()
    if len(os.listdir("/proc/self/task")) > len(os.sched_getaffinity(0)):  # Numba's pool, which is idle, may be there
        sys.exit("a library has started a thread while it was imported: this process must not fork")
    gc.freeze()  # what is shared stays shared: a collection would copy it
    status = _run(*_next_job(socket.socket(fileno=int(sys.argv[1]))))
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take the modules apart would take 2 seconds
