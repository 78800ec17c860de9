"""A grid run as users run it: killed and started again, by several processes at a time, finished cells left alone."""

import json
import signal
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import train_imagenet
from rn_vs_vit import __main__ as command
from rn_vs_vit import grid, others
from training.loading import eval_loader

ROOT = Path(__file__).resolve().parents[2]

TINY = """
recipe: {root}/recipes/base.yaml
fixed:
  stage.resolution: 32
  stage.epochs: {epochs}
  stage.batch: 16
  stage.mix_chunk: 8
  stage.warmup_epochs: 0
  speed.device: cpu
  data.workers: 1
  data.train: {beton}
  data.val: {beton}
  log.every: 1
  log.tensorboard: false
  log.out: {out}
axes:
  network: {{ViT: {{model.name: deit3_micro_patch16_224}}}}
  augmentation:
    3-Augment: {{stage.augment: three}}
    none: {{stage.augment: none, stage.jitter: none}}
seeds: [0]
"""
MICRO = "model.name: deit3_micro_patch16_224"


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """Imports take longer than a cell of this size. The first test starts processes."""
    if "start_python" in request.fixturenames:
        return

    def train(recipe, init):
        try:
            return train_imagenet.main(["--cfg", str(recipe), *([f"--init={init}"] if init else [])]) or 0
        except SystemExit as ended:
            return ended.code

    monkeypatch.setattr(command, "train", train)


@pytest.fixture
def tiny(tmp_path, jpg_beton):
    def write(out="runs", epochs=1):
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY.format(root=ROOT, beton=jpg_beton, out=tmp_path / out, epochs=epochs))
        return path

    return write


def epochs(cell):
    rows = map(json.loads, (cell.folder / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "epoch"]


def test_a_killed_grid_goes_on_where_it_was_and_ends_with_the_same_bits(tiny, start_python, capfd):
    path = tiny(epochs=12)
    cells = grid.read(path).cells
    (process,) = start_python(["-m", "rn_vs_vit", "--cfg", path])
    checkpoints = cells[0].folder / "checkpoints"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(epochs(cells[0]))
    assert 1 <= done < 12
    command.main(["--cfg", str(path)])
    said = capfd.readouterr().out
    assert "going on at stage train" in said
    assert "ViT: 3-Augment minus none = " in said
    assert all(command.finished(cell) and len(epochs(cell)) == 12 for cell in cells)
    whole = tiny(out="whole", epochs=12)
    command.main(["--cfg", str(whole), "--cells=1"])
    one, other = (load_file(grid.read(p).cells[0].folder / "model.safetensors") for p in (whole, tiny(epochs=12)))
    assert all((one[name] == other[name]).all() for name in one)


def test_finished_cells_are_not_run_again_and_cells_are_counted(tiny, monkeypatch):
    path, ran = tiny(), []
    train = command.train
    monkeypatch.setattr(command, "train", lambda recipe, init: ran.append(str(recipe)) or train(recipe, init))
    cells = grid.read(path).cells
    for expected in (["3-Augment"], ["3-Augment", "none"], ["3-Augment", "none"]):
        assert command.main(["--cfg", str(path), "--cells=1"]) is False
        assert ran == [str(cell.folder / "recipe.yaml") for cell in cells if cell.choice in expected]
    table = (grid.read(path).folder / "table.md").read_text()
    assert table.count("1/1") == 2
    assert (grid.read(path).folder / "plot.png").stat().st_size > 1000


def test_other_labels_and_images_are_judged_too(tiny, tmp_path, jpg_beton, capsys):
    """V2 is here the validation data itself. For ReaL the files are named after public images, two in three of which
    show, among others, what the network says; this follows from the logits of timm's model."""
    path = tiny()
    path.write_text(path.read_text().replace("fixed:", "fixed:\n  model.classes: 1000"))
    command.main(["--cfg", str(path), "--cells=1"])
    cell = grid.read(path).cells[0]
    network = timm.create_model("deit3_micro_patch16_224", img_size=32, num_classes=1000, init_values=1e-4).eval()
    network.load_state_dict(load_file(cell.folder / "model.safetensors"))
    images, _ = next(iter(eval_loader(jpg_beton, 96, cell.run.stages[0], batch=96).epoch(0)))
    mean, std = (torch.tensor(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    said = network(((images / 255 - mean) / std).permute(0, 3, 1, 2)).argmax(1).tolist()
    lists = json.loads((Path(timm.__file__).parent / "data/_info/imagenet_real_labels.json").read_text())
    wanted = [lambda shown, one=one: one in shown for one in said]
    wanted[::3] = [lambda shown, one=one: shown and one not in shown for one in said[::3]]
    wanted[5] = lambda shown: not shown
    numbers = [next(n for n, shown in enumerate(lists, 1) if fits(shown)) for fits in wanted]
    named = tmp_path / "named.beton"
    named.symlink_to(jpg_beton)
    names = "".join(f"val/n0/ILSVRC2012_val_{number:08d}.JPEG\n" for number in numbers)
    (tmp_path / "named.files.txt").write_text(names)
    command.main(["--cfg", str(path), "--report", f"--data.val={named}", f"--v2={jpg_beton}", "--real"])
    found, top1 = others.read(cell), epochs(cell)[-1]["top1"]
    assert found["V2"] == pytest.approx(top1, abs=1e-6)
    assert found["ReaL"] == 63 / 95
    assert "top-1 % on ReaL" in capsys.readouterr().out
    (tmp_path / "named.files.txt").write_text("other.jpg\n")
    (cell.folder / "others.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        command.main(["--cfg", str(path), "--report", f"--data.val={named}", "--real"])


def test_a_cell_that_another_process_holds_is_left_to_it(tiny, monkeypatch):
    path, ran = tiny(), []
    monkeypatch.setattr(command, "train", lambda recipe, init: ran.append(str(recipe)) or 0)
    first, second = grid.read(path).cells
    with command.claimed(first) as free:
        assert free
        command.main(["--cfg", str(path)])
    assert ran == [str(second.folder / "recipe.yaml")]


def test_a_changed_grid_does_not_count_old_cells(tiny, capsys):
    path = tiny()
    command.main(["--cfg", str(path), "--cells=1"])
    with pytest.raises(SystemExit, match="2"):
        command.main(["--cfg", str(path), "--stage.mixup=0.5"])
    assert "holds another run (stage train: mixup 0.8, not 0.5)" in capsys.readouterr().err


def test_a_report_needs_no_keys_and_says_in_what_the_cells_differ_from_the_file(tiny, capsys):
    path = tiny()
    command.main(["--cfg", str(path), "--stage.batch=8"])
    ran = capsys.readouterr().out
    command.main(["--cfg", str(path), "--report"])
    reported = capsys.readouterr().out
    assert "All cells with stage train: batch 8.\n" in reported
    assert "All cells" not in ran
    assert reported.splitlines()[0] in ran
    for cell in grid.read(path).cells[:1]:
        recipe = cell.folder / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("batch: 8", "batch: 16"))
    with pytest.raises(SystemExit, match="2"):
        command.main(["--cfg", str(path), "--report"])
    assert "not to be compared: " in capsys.readouterr().err


def test_cells_start_from_given_weights(tiny, tmp_path, capsys):
    """A linear probe beside a whole fine-tune: only of the latter the blocks move."""
    path = tiny()
    command.main(["--cfg", str(path), "--cells=1"])
    start = grid.read(path).cells[0].folder / "model.safetensors"
    axes = "axes: {stage.freeze: [none, backbone]}\nseeds: [1]\n"
    path.write_text(path.read_text().partition("axes:")[0].replace("fixed:", f"fixed:\n  {MICRO}") + axes)
    command.main(["--cfg", str(path), f"--init={start}"])
    assert "1/1" in capsys.readouterr().out
    whole, probe = (load_file(cell.folder / "model.safetensors") for cell in grid.read(path).cells)
    before, name = load_file(start), "blocks.0.mlp.fc1.weight"
    assert (probe[name] == before[name]).all()
    assert (probe["head.weight"] != before["head.weight"]).any()
    assert (whole[name] != before[name]).any()


def test_cells_of_other_data_are_not_mixed_with_the_grids(tiny, raw_beton, capsys):
    path = tiny()
    command.main(["--cfg", str(path), "--cells=1"])
    with pytest.raises(SystemExit, match="2"):
        command.main(["--cfg", str(path), f"--data.train={raw_beton}"])
    assert "its train data have other images, labels or class names" in capsys.readouterr().err


def test_bad_input_is_one_line(tiny, capsys, monkeypatch):
    for arguments, words in (
        (["--data.train=none.beton"], "none.beton"),
        (["--cells=0"], "--cells"),
        (["--seed=3"], "seed is what cells differ in"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command.main(["--cfg", str(tiny()), *arguments])
        assert words in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--cfg", str(tiny())])
    assert "instead of with torchrun" in capsys.readouterr().err
