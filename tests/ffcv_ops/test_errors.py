import subprocess
import sys

import pytest

from ffcv_ops.errors import one_line

PRINTS = "from ffcv_ops.errors import exits_cleanly\n@exits_cleanly\ndef main():\n    {}\nmain()"


def run(body, **options):
    return subprocess.run([sys.executable, "-c", PRINTS.format(body)], capture_output=True, text=True, **options)


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
        ("__import__('os').kill(0, 2); __import__('time').sleep(60)", "interrupted\n"),
    ],
)
def test_an_interrupt_is_one_line_and_status_130(main, said):
    ended = run(main, start_new_session=True)
    assert (ended.returncode, ended.stderr) == (130, said)


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
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
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
