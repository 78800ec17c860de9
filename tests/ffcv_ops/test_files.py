import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ffcv_ops.errors import UserError
from ffcv_ops.files import locked, open_regular, read_regular, write_atomically

HOLDS = "import sys, time\nfrom pathlib import Path\nfrom ffcv_ops.files import locked\n" + (
    "with locked(Path(sys.argv[1]), 'it'):\n    print('held', flush=True)\n    time.sleep(600)"
)


def _holes(path):
    path.touch()
    os.truncate(path, 2**40)


ODD = {  # what may lie where a file is expected, and what is said of it
    "a folder": (Path.mkdir, "x is a folder, not a file"),
    "a pipe": (os.mkfifo, "x is a named pipe, not a file"),
    "a socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "x is a socket, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "x is a device, not a file"),
    "holes": (_holes, "x has 1,099,511,627,776 bytes, where at most 268,435,456 are expected"),
    "a link to nowhere": (lambda path: path.symlink_to("gone"), "x is a link to gone, which is not there"),
    "a link to itself": (lambda path: path.symlink_to("x"), "x is a link to x, which is not there"),
    "nothing": (lambda path: None, "x cannot be read: No such file or directory"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_named_and_not_waited_for(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make, words = ODD[kind]
    make(Path("x"))
    with pytest.raises(UserError) as refusal:
        read_regular("x")
    assert str(refusal.value) == words
    Path("good").write_bytes(b"all of it")
    Path("link").symlink_to("good")
    with open_regular("link", 9) as file:
        assert file.read() == b"all of it"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_no_device_is_locked(device, tmp_path):
    (tmp_path / "lock").symlink_to(device)
    with pytest.raises(UserError, match="is not a file; remove it"), locked(tmp_path / "lock", "it"):
        pass


def test_one_process_at_a_time_and_none_that_was_killed(tmp_path):
    path = tmp_path / "new" / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="runs/x is being written by another process"), locked(path, "runs/x"):
        raise AssertionError("two hold it")
    other.kill()
    other.wait()
    other.stdout.close()
    with locked(path, "runs/x") as file:
        assert file.name == str(path)


def test_a_place_that_takes_no_file():
    words = "the run cannot be written: No such file"
    with pytest.raises(UserError, match=words), locked(Path("/proc/no/x"), "the run"):
        pass


def test_a_lock_that_its_holder_removed_is_no_lock(tmp_path):
    with locked(tmp_path / "lock", "it"):
        (tmp_path / "lock").unlink()
        with locked(tmp_path / "lock", "it"):
            assert (tmp_path / "lock").exists()


def test_a_failed_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, lambda p: p.write_text("good"))

    def fail(p):
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_appears_when_its_content_is_on_the_disk(tmp_path, monkeypatch):
    """The order of the system's calls: file synced, renamed, folder synced."""
    calls, path = [], tmp_path / "x"
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.readlink(f"/proc/self/fd/{fd}")) or sync(fd))
    monkeypatch.setattr(Path, "replace", lambda self, to: calls.append(f"rename to {to}") or rename(self, to))
    write_atomically(path, lambda p: p.write_text("good"))
    assert calls == [f"{path}.{os.getpid()}.tmp", f"rename to {path}", str(tmp_path)]
