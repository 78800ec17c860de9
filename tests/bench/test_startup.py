"""The index without pictures is a file that both loaders read; results and failures are told."""

import json

import numpy as np
import pytest
from ffcv.reader import Reader

from bench import startup
from ffcv_ops.storage.index import open_index

pytestmark = pytest.mark.timeout(240)


def test_the_hole_is_a_data_set(tmp_path):
    path = tmp_path / "hole.beton"
    startup.write_hole(path, 1000)
    known, stock = open_index(path), Reader(str(path))
    np.testing.assert_array_equal(known.metadata, stock.metadata)
    assert (stock.num_samples, known.sizes[7], known.checksums[7]) == (1000, startup.IMAGE_BYTES, 7)
    assert path.stat().st_blocks * 512 < 2e6 < path.stat().st_size


def test_ours_is_measured(tmp_path, capsys):
    out = tmp_path / "startup.json"
    startup.main(["--samples=20000", "--only=ours", "--json", str(out)])
    rows = {row["task"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["start-up, 20,000 samples"]["value"] > 0
    assert 0.1 < rows["peak memory"]["value"] < 4
    assert "describe" in capsys.readouterr().out


def test_what_takes_too_much_is_ended(tmp_path):
    startup.write_hole(tmp_path / "hole.beton", 100)
    assert startup.measure("ours", tmp_path / "hole.beton", 0.05) == "ended at 0.05 GB of memory"


def test_unknown_contenders(capsys):
    with pytest.raises(SystemExit):
        startup.main(["--only=theirs"])
    assert "there are ours, ffcv" in capsys.readouterr().err
