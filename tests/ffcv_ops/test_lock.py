import subprocess
import sys
from pathlib import Path

import pytest

from ffcv_ops.errors import UserError
from ffcv_ops.lock import alone

HOLDS = "import sys, time\nfrom pathlib import Path\nfrom ffcv_ops.lock import alone\n" + (
    "with alone(Path(sys.argv[1]), 'it'):\n    print('held', flush=True)\n    time.sleep(600)"
)


def test_one_process_at_a_time_and_none_that_was_killed(tmp_path):
    path = tmp_path / "new" / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="runs/x is being written by another process"), alone(path, "runs/x"):
        raise AssertionError("two hold it")
    other.kill()
    other.wait()
    other.stdout.close()
    with alone(path, "runs/x") as file:
        assert file.name == str(path)


def test_a_place_that_takes_no_file():
    words = "the run cannot be written: No such file"
    with pytest.raises(UserError, match=words), alone(Path("/proc/no/x"), "the run"):
        pass


def test_a_lock_that_its_holder_removed_is_no_lock(tmp_path):
    with alone(tmp_path / "lock", "it"):
        (tmp_path / "lock").unlink()
        with alone(tmp_path / "lock", "it"):
            assert (tmp_path / "lock").exists()
