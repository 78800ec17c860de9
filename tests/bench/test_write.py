"""What bench.write makes of its measurements, and one conversion by each writer."""

import numpy as np
import pytest

from bench import dataset, write


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    dataset.write_images(folder, {"train": 20})
    return folder


@pytest.mark.timeout(120)
def test_one_conversion(images, tmp_path):
    """Seconds, the bytes of the JPEGs, which are stored as they are, and more memory than Python alone."""
    found = write.measure("ours", "as they are, 500 px", images, tmp_path, 2)
    assert found["seconds"] > 0
    assert found["bytes"] == sum(file.stat().st_size for file in images.rglob("*.jpg"))
    assert found["memory"] > 2e7
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_of_the_same_turn():
    runs = {
        (task, writer): [{"seconds": seconds, "bytes": 500, "memory": 2e6} for seconds in times]
        for task in write.TASKS
        for writer, times in (("ours", [1, 2, 4]), ("ffcv", [3, 4, 4]))
    }
    rows = write.rows_of(runs, 100)
    found = {(row["task"], row["name"], row["unit"]): row for row in rows}
    for task in write.TASKS:
        ratio = found[task, "ours / ffcv", "x"]
        assert (ratio["lo"], ratio["value"], ratio["hi"]) == (1, 2, 3)
        assert np.isclose(found[task, "ours", "images/s"]["value"], 50)
        assert found[task, "ffcv", "bytes/image"]["value"] == 5
    assert len(write.grid_of(rows).lines) == 3 * len(write.TASKS)
