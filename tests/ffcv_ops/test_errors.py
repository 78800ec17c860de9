import subprocess
import sys

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
    ended = run("from ffcv_ops.errors import BadInput; raise BadInput('x: no such file')")
    assert (ended.returncode, ended.stderr) == (2, "error: x: no such file\n")
