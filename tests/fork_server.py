"""Has imported what the two programs import, and forks for each command that it is asked for.

    python fork_server.py DESCRIPTOR      # of a socket; tests/conftest.py starts it

A command is one message: {"words", "environment", "folder"} as JSON, with four descriptors: where to say the process's
number and then its status, stdin, stdout and stderr. The process does what `python WORDS` would, without the 8 seconds
of imports before it; a fork is safe because this process has one thread. Libraries that read the environment when they
are imported have seen this process's.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback

MOST = 2**20  # bytes of a message


def forked(control: socket.socket) -> list[str]:
    """Forks for each message until the other side is gone; returns, in the processes it has made, their words."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers end by themselves
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MOST, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _kept(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _kept(asked: dict, report: int, *streams: int) -> list[str]:
    """Forks once more: this process waits for the other and tells how it ended, since only a parent can."""
    process = os.fork()
    if process:
        for descriptor in streams:
            os.close(descriptor)
        os.write(report, b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.close(report)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    return asked["words"]


def run(words: list[str]) -> int:
    """Does what `python WORDS` does; returns the status."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
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
    sys.path[0] = os.getcwd()
    import train_imagenet  # noqa: F401
    import write_datasets  # noqa: F401

    gc.freeze()  # what is shared stays shared: a collection would copy it
    status = run(forked(socket.socket(fileno=int(sys.argv[1]))))
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take the modules apart would take 2 seconds
