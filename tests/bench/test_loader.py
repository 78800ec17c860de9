"""The loader benchmark: a repeatable dataset, baselines that do their work, failures that are told, rows and tables."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageOps

from bench import dataset, loader, loader_views, report
from bench.loader_process import Failed, LoaderProcess
from bench.loaders import LOADERS, ours, reference_pillow, takes_part, torchvision_v2
from bench.loaders.ffcv_tuned_ops import TUNED
from bench.loaders.ffcv_user_ops import STRAIGHTFORWARD, get_simple_random_crop
from bench.tasks import TASKS
from ffcv_ops import host
from ffcv_ops.augment import chain
from ffcv_ops.errors import UserError

ROOT = Path(__file__).parents[2]
FEW = {"train": 40, "val": 10}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    dataset.write_images(folder, {"train": 60, "val": 10})
    return folder


def digest(folder):
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*.jpg")):
        whole.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return whole.hexdigest()


def test_the_dataset_is_the_same_every_time(images, tmp_path):
    dataset.write_images(tmp_path, {"train": 60, "val": 10})
    assert digest(tmp_path) == digest(images)


def test_the_dataset_looks_like_imagenet(images):
    files = sorted(images.rglob("*.jpg"))
    assert len(files) == 70
    assert 40_000 < np.mean([file.stat().st_size for file in files]) < 50_000
    opened = [Image.open(file) for file in files]
    assert all(max(image.size) == 500 and image.mode == "RGB" for image in opened)
    assert {image.layer[0][1:3] for image in opened} == {(2, 2)}, "4:2:0"
    upright = np.mean([image.height > image.width for image in opened])
    assert 0.05 < upright < 0.4
    assert len({hashlib.sha256(image.tobytes()).digest() for image in opened}) == 70, "no image twice"


def test_windows_are_hardly_enlarged():
    photo = Image.new("RGB", (1000, 800))
    for number in range(50):
        scales = []
        photo.resize = lambda size, filter, box, scales=scales: (scales.append((box, size)), Image.new("RGB", size))[1]
        photo.transpose = lambda how: photo
        dataset.window(photo, random.Random(number))
        (left, top, right, bottom), (width, height) = scales[0]
        assert (right - left) / width >= dataset.LEAST_SCALE
        assert right <= 1000 + 1e-6 or height > width
        assert left >= 0 and top >= 0
        assert (right - left) / width == pytest.approx((bottom - top) / height)


# --- baselines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(photos):
    return np.ascontiguousarray(photos["cat"][:200, :230])


@pytest.mark.parametrize("kernels", [STRAIGHTFORWARD, TUNED])
class TestOperationsOfFFCVUsers:
    def test_grayscale_and_solarize_are_pillows(self, kernels, photo):
        gray, solarized = photo.copy(), photo.copy()
        kernels.grayscale(gray)
        kernels.solarize(solarized)
        assert_near(gray, Image.fromarray(photo).convert("L").convert("RGB"), 1)
        assert_near(solarized, ImageOps.solarize(Image.fromarray(photo)), 0)

    @pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
    def test_blur_is_scipys(self, kernels, photo, sigma):
        blurred = photo.copy()
        height, width, _ = photo.shape
        kernels.gaussian_blur(blurred, sigma, np.empty((height + 1, width + 12, 3), np.float32))
        exact = scipy.ndimage.gaussian_filter(
            photo.astype(float), (sigma, sigma, 0), mode="nearest", radius=(int(np.ceil(3 * sigma)),) * 2 + (0,)
        )
        assert_near(blurred, exact, 1)

    @pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
    def test_jitter_is_pillows(self, kernels, photo, factor):
        for kernel, enhance in (
            (kernels.brightness, ImageEnhance.Brightness),
            (kernels.contrast, ImageEnhance.Contrast),
            (kernels.saturation, ImageEnhance.Color),
        ):
            changed = photo.copy()
            kernel(changed, np.float32(factor))
            assert_near(changed, enhance(Image.fromarray(photo)).enhance(factor), 1)


def assert_near(image, reference, most):
    assert np.abs(image.astype(float) - np.asarray(reference, float)).max() <= most


def test_the_window_of_ffcvs_simple_random_crop_slides_along_the_long_side():
    windows = [get_simple_random_crop(30, 50, None, None) for _ in range(500)]
    assert {(top, height, width) for top, _, height, width in windows} == {(0, 30, 30)}
    assert {left for _, left, _, _ in windows} == set(range(21))


def test_torchvision_and_pillow_evaluate_alike(images):
    file = str(next(images.rglob("*.jpg")))
    results = [
        baseline.transform_of(TASKS["E"])(baseline.read(file)) for baseline in (torchvision_v2, reference_pillow)
    ]
    first, second = (np.asarray(image, float) for image in results)
    assert first.shape == second.shape == (3, 224, 224)
    assert np.abs(first - second).mean() < 2


@pytest.mark.parametrize("task", "ABCDFGH")
@pytest.mark.parametrize("baseline", [torchvision_v2, reference_pillow])
def test_training_transforms_are_random_and_of_the_right_size(images, baseline, task):
    image = baseline.read(str(next(images.rglob("*.jpg"))))
    first, second = (baseline.transform_of(TASKS[task])(image).numpy() for _ in range(2))
    assert first.shape == second.shape == (3, TASKS[task].size, TASKS[task].size)
    assert first.dtype == np.uint8
    assert (first != second).any()


def test_who_has_which_policy():
    have = {task.name: {name for name in LOADERS if takes_part(name, task)} for task in TASKS.values()}
    assert have["F"] == have["G"] == have["H"] | {"timm"}
    of_ours = {"ours", "ours-libjpeg", "ours-fast", "ours-pyramid", "ours-raw"}
    usual = of_ours | {"torchvision-v2", "pillow", "timm", "bound-decode"}
    assert have["F"] == usual | {"ours-library", "ours-in-ffcv", "ffcv-torchvision", "torchcodec"}
    assert have["B"] - have["F"] == {"ffcv", "ffcv-tuned", "ffcv-raw", "dali"}
    assert have["A"] - have["B"] == {"spdl"}


def test_our_tasks_are_stages_of_those_policies():
    stages = {name: ours.stage_of(TASKS[name], 8, {}) for name in "ABFGH"}
    found = {name: (stage.augment, stage.jitter) for name, stage in stages.items()}
    assert found == {
        "A": ("none", None), "B": ("three", 0.3), "F": ("rand", None), "G": ("auto-original", None),
        "H": ("trivial", None),
    }  # fmt: skip
    assert chain.pin(stages["F"].augment) == "rand(config=rand-m9-mstd0.5-inc1)"


# --- a small run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "dataset"
    dataset.make(folder, {"ours_jpg"}, **FEW)
    return folder


def run(small, *options):
    command = [sys.executable, "-m", "bench.loader", "--quick", "--dataset", small, "--images=40", "--batch=8"]
    command += ["--tasks=A", "--repeats=2", "--seconds=0.01", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def small_run(small, tmp_path_factory):
    """The run, and what it wrote."""
    file = tmp_path_factory.mktemp("results") / "results.json"
    ended = run(small, "--only=ours,pillow,bound-eighth", "--tasks=A,decode", f"--json={file}")
    assert ended.returncode == 0, ended.stderr
    return ended, json.loads(file.read_text())


def test_the_json_has_machine_and_rows(small_run):
    _, results = small_run
    assert set(results) == {"machine", "rows"}
    assert results["machine"]["cores"] == host.usable_cores()
    assert results["machine"]["libraries"]["pillow"] == Image.__version__
    assert "-m bench.loader --quick" in results["machine"]["command"]
    for row in results["rows"]:
        assert list(row) == ["task", "name", "value", "unit", "lo", "hi", "n"]
        assert 0 < row["lo"] <= row["value"] <= row["hi"]
    measured = {(row["task"], row["name"]): row for row in results["rows"] if row["unit"] == "images/s"}
    assert set(measured) == {("A", "ours"), ("A", "pillow"), ("decode", "bound-eighth")}
    assert {row["n"] for row in measured.values()} == {2}


def test_the_tables_are_made_of_the_json(small_run, tmp_path, capsys):
    ended, results = small_run
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    loader.main(["--table", f"--json={file}"])
    assert capsys.readouterr().out == ended.stdout
    assert "A: RRC 224" in ended.stdout
    assert "*ours / best baseline*" in ended.stdout


def test_a_loader_that_raises_is_told_and_the_others_go_on(small_run, small, tmp_path):
    damaged = next((small / "images" / "train").rglob("*.jpg"))
    intact = damaged.read_bytes()
    try:
        damaged.write_bytes(b"no JPEG")
        ended = run(small, "--only=pillow,ours", f"--json={tmp_path / 'results.json'}")
    finally:
        damaged.write_bytes(intact)
    assert ended.returncode == 1
    assert "failed: A pillow: UnidentifiedImageError" in ended.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["task"] == "A"] == ["ours"]


def test_a_loader_that_dies_is_noticed(small, tmp_path):
    process = LoaderProcess("bound-eighth", small, batch=8, workers=1, log=tmp_path / "log")
    process.prepare("decode")
    assert process.seconds(2) > 0
    os.kill(process.process.pid, signal.SIGKILL)
    with pytest.raises(Failed, match="died"):
        process.seconds(2)
    assert process.closed


def test_closing_ends_the_process(small, tmp_path):
    process = LoaderProcess("bound-eighth", small, batch=8, workers=1, log=tmp_path / "log")
    process.close()
    assert process.closed


@pytest.mark.parametrize("options", [["--tasks=Z"], ["--only=ours,tensorflow"], ["--images=8"], ["--table"]])
def test_bad_options_end_with_one_line(options, capsys):
    with pytest.raises(SystemExit) as ended:
        loader.main(options)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- tables --------------------------------------------------------------------------------------------------------

ROWS = [
    report.row("A", "ours", [300, 100, 200], "images/s"),
    report.row("A", "ffcv", [100, 90, 80], "images/s"),
    report.row("A", "ffcv-raw", [400], "images/s"),
    report.row("A", "ffcv-tuned", [150], "images/s"),
    report.row("A", "pillow", [50], "images/s"),
    report.row("E", "pillow", [70], "images/s"),
    report.row("A ratio", "ours", [2, 3], "ffcv"),
    report.row("size", "ours_jpg", [47.25], "KB/image"),
]


def test_rows_hold_median_and_range():
    assert ROWS[0] == {"task": "A", "name": "ours", "value": 200, "unit": "images/s", "lo": 100, "hi": 300, "n": 3}


def test_ratios_are_of_rounds_and_to_the_fastest_baseline():
    rates = {"ours": [300, 120, 210], "ffcv": [60] * 3, "ffcv-raw": [400] * 3, "ffcv-tuned": [100, 60, 70]}
    (row,) = loader.ratio_rows("A", rates | {"pillow": [50] * 3})
    assert row == {"task": "A ratio", "name": "ours", "value": 3, "unit": "ffcv-tuned", "lo": 2, "hi": 3, "n": 3}
    assert loader.ratio_rows("A", {"ours": [1], "bound-decode": [2]}) == []


def test_tables():
    throughput, sizes = loader_views.tables(ROWS)
    assert throughput.header == ["pipeline", "A: RRC 224", "E: eval 224"]
    lines = {line[0]: line[1:] for line in throughput.lines}
    assert lines["ours"] == ["200 (100-300)", "-"]
    assert lines["*ours / best baseline*"] == ["2.50 (2.00-3.00) x ffcv", "-"]
    assert sizes.lines == [["ours_jpg", "47.2"]]


def test_markdown_goes_between_its_markers(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter\n")
    table = report.markdown(report.Grid("", ["name", "value"], [["ours", "1"]]))
    for _ in range(2):
        report.replace_between(file, "x", table)
    assert file.read_text() == (
        "before\n<!-- x -->\n| name   |   value |\n|:-------|--------:|\n| ours   |       1 |\n<!-- /x -->\nafter\n"
    )
    with pytest.raises(UserError, match="needs one line <!-- y -->"):
        report.replace_between(file, "y", table)
    with pytest.raises(UserError, match=r"nothing\.md: needs one line <!-- x -->"):
        report.marked("x")(str(tmp_path / "nothing.md"))
    assert not (tmp_path / "nothing.md").exists()


def test_the_plot_is_as_wide_as_a_page_with_a_panel_below_the_other_and_no_bars_of_stored_pixels():
    figure = loader_views.plot(ROWS, "a machine")
    figure.draw_without_rendering()
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["ours", "ffcv", "ffcv-tuned", "pillow"]
    assert [panel.get_title(loc="left") for panel in (first, second)] == [
        "A: RandomResizedCrop 224", "E: evaluation 224",
    ]  # fmt: skip
    assert figure.get_figwidth() < 9, "or GitHub shrinks its letters"
    boxes = [panel.get_window_extent() for panel in (first, second)]
    assert boxes[1].y1 < boxes[0].y0 and boxes[0].x0 == boxes[1].x0
