import os
import resource
import subprocess
import sys

import pytest

from ffcv_ops.errors import one_line

PRINTS = "from ffcv_ops import errors\n@errors.exits_cleanly\ndef main():\n    {}\nmain()"
STRIKE, WAIT = "__import__('os').kill(0, 2)", "__import__('time').sleep(60)"


def run(body, **options):
    words = [sys.executable, "-c", PRINTS.format(body)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, **options)


def test_a_reader_that_has_read_enough_is_no_error():
    code = PRINTS.format("[print(number) for number in range(100_000)]")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


def test_another_broken_pipe_is_not_hidden():
    ended = run("raise BrokenPipeError('a worker is gone')")
    assert ended.returncode == 1
    assert "BrokenPipeError: a worker is gone" in ended.stderr


def test_bad_input_is_one_line_and_status_2():
    ended = run("from ffcv_ops.errors import UserError; raise UserError('x: no such file')")
    assert (ended.returncode, ended.stderr) == (2, "error: x: no such file\n")


def test_bad_input_that_imports_find_is_one_line_and_status_2_too():
    ended = run("print('x')\nmain()\nraise errors.UserError('y: no such file')\ndef main():\n    pass")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "x\n", "error: y: no such file\n")


def test_text_that_is_not_ours_stays_text():
    """Nothing in a file's name or content moves the cursor, hides what is there, or fills the screen."""
    assert (
        one_line("two\nlines\r\x1b[2J\x85\u2028\u202e\udcff é 猫")
        == "two\\x0alines\\x0d\\x1b[2J\\x85\\u2028\\u202e\\udcff é 猫"
    )
    assert one_line("a" * 10**6) == "a" * 300 + "..." and one_line("a" * 300) == "a" * 300
    ended = run(r"from ffcv_ops.errors import UserError; raise UserError('x\x1b[2J\udcff' + 'a' * 10**6)")
    assert ended.returncode == 2 and len(ended.stderr) < 5000
    assert ended.stderr.startswith(r"error: x\x1b[2J\udcff") and ended.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("main", "said"),
    [
        ("raise KeyboardInterrupt", "interrupted\n"),
        ("raise KeyboardInterrupt('two are kept')", "interrupted; two are kept\n"),
        (f"{STRIKE}; {WAIT}", "interrupted\n"),
        (f"try: {STRIKE}; {WAIT}\n    finally: [{STRIKE} for _ in range(4)]; print('in order')", "interrupted\n"),
        (f"__import__('atexit').register(lambda: {STRIKE}); {STRIKE}; {WAIT}", "interrupted\n"),
        (f"errors.PATIENCE = 0\n    try: {STRIKE}; {WAIT}\n    finally: {STRIKE}; {WAIT}", "interrupted\n"),
    ],
)
def test_an_interrupt_is_one_line_and_status_130(main, said):
    """However often Ctrl-C is pressed: what puts things in order is left alone, and ended where that takes too long."""
    ended = run(main, start_new_session=True)
    assert (ended.returncode, ended.stderr) == (130, said)
    assert ended.stdout == ("in order\n" if "in order" in main else "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise MemoryError", "there is no memory left"),
        (
            "return [open('/dev/null') for _ in range(99)]",
            "/dev/null: too many files are open; raise",
        ),
        (
            'raise RuntimeError("can\'t start new thread")',
            "no further process or thread can be started",
        ),
        ("open('/dev/full', 'w', buffering=1).write('x\\n')", "the disk is full; make room"),
    ],
)
def test_a_limit_of_the_process_is_one_line_and_status_2(body, said):
    ended = run(body, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50)))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert ended.stderr.startswith(f"error: {said}")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_stream_cannot_show_is_escaped(encoding):
    ended = run(r"print('\u732b \udcff')", env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (ended.returncode, ended.stdout) == (0, "猫 \\udcff\n" if encoding == "utf-8" else "\\u732b \\udcff\n")


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_outside_of_main_is_one_line_too(when):
    """What was printed before it comes out."""
    strike = "os.kill(os.getpid(), signal.SIGINT)"
    before, after = (strike if when == place else "" for place in ("before", "after"))
    code = f"""
import os, signal
from ffcv_ops.errors import exits_cleanly, interruptible
print("said")
interruptible()
{before}
@exits_cleanly
def main():
    assert signal.getsignal(signal.SIGINT).__name__ == "_interrupt_once"
main()
{after}
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "said\n", "interrupted\n")


def test_an_interrupt_that_is_ignored_stays_ignored():
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from ffcv_ops.errors import exits_cleanly, interruptible
interruptible()
os.kill(os.getpid(), signal.SIGINT)
exits_cleanly(lambda: os.kill(os.getpid(), signal.SIGINT))()
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
