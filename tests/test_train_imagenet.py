"""The training script as users run it: recipes, resuming, ranks, evaluation, bad input."""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter
from safetensors.torch import load_file, save_file

import train_imagenet
from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from ffcv_ops.files import locked
from report.collect import collect as report_of
from training.evaluation import predictions
from training.loading import Placement, eval_loader, train_loader
from training.network import model
from training.saving import checkpoint

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("**/*.yaml") if path.name != "base.yaml")
SMALL = ["--model.name=deit3_micro_patch16_224", "--stage.resolution=32", "--stage.batch=16", "--stage.mix_chunk=8",
         "--speed.device=cpu", "--log.tensorboard=false", "--log.every=1", "--data.workers=1"]  # fmt: skip


@pytest.fixture
def data(jpg_beton):
    return [f"--data.train={jpg_beton}", f"--data.val={jpg_beton}"]


def command(*arguments):
    return [ROOT / "train_imagenet.py", *arguments]


def rows(folder, kind="epoch"):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in lines if row["kind"] == kind]


# --- every recipe --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_report(monkeypatch):
    """Drawing curves takes longer than the two steps that they would show; test_it_learns has a report."""
    monkeypatch.setattr(train_imagenet.report, "write", lambda folder: "")


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory, jpg_beton):
    """Two data sets that share three of their classes: 7 in the first, 5 in the second; and weights for 3 others."""
    folder = tmp_path_factory.mktemp("sets")
    for name, classes in (("main", "abcdefg"), ("finetune", "xbydf")):
        (folder / f"{name}.beton").symlink_to(jpg_beton)
        (folder / f"{name}.json").write_text(json.dumps({"classes": list(classes)}))
    trained = model.create("deit3_micro_patch16_224", resolution=48, classes=3, drop_path=0.0, layer_scale=1e-4)
    save_file(trained.state_dict(), folder / "init.safetensors")
    return folder


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_every_recipe_trains_a_step_is_saved_and_reloaded(path, two_sets, tmp_path, capsys):
    """Each stage of each recipe at tiny size, for one epoch of two steps in two pieces; then what was saved is
    evaluated and found to be finished."""
    run = load_recipe(path)
    stages = run.stages
    shrunk = [*SMALL, "--stage.batch=48", "--speed.micro_batch=24", "--stage.epochs=1", "--stage.warmup_epochs=0",
              f"--log.out={tmp_path}", "--log.name=run"]  # fmt: skip
    shrunk += [f"--data.{part}={two_sets / 'main.beton'}" for part in ("train", "val")]
    if any(stage.data == "finetune" for stage in stages):
        shrunk += [f"--data.finetune_{part}={two_sets / 'finetune.beton'}" for part in ("train", "val")]
    if any(stage.teacher for stage in stages):
        shrunk += ["--stage.distill=none", "--stage.teacher=none"]  # test_finetuning.py has a teacher at hand
    if run.model.name == "resnet50":
        shrunk += ["--model.name=test_resnet", "--stage.eval_resolution=48"]
    if run.model.name.startswith("vit_"):
        args = ", ".join(filter(None, [run.model.args, "depth=1"]))
        shrunk += [f"--model.name={run.model.name}", f"--model.args={args}"]
    if stages[0].ramp:
        shrunk += ["--stage.ramp=32,0,0"]
    start = [] if stages[0].head == "keep" else [f"--init={two_sets / 'init.safetensors'}"]
    train_imagenet.main(["--cfg", str(path), *shrunk, *start])
    epochs = rows(tmp_path / "run")
    assert [(row["stage"], row["step"]) for row in epochs] == [(s.name, 2 * k + 2) for k, s in enumerate(stages)]
    assert all(row["val_images"] == 96 and row["grad_norm"] > 0 for row in epochs)
    said = capsys.readouterr().out
    assert said.count("3 of 5 classes keep their weights") == sum(stage.head == "map" for stage in stages)
    first, last = (load_file(tmp_path / "run" / f"{s.name}.safetensors") for s in (stages[0], stages[-1]))
    bias = "fc.bias" if run.model.name == "resnet50" else "head.bias"
    assert [len(w[bias]) for w in (first, last)] == [7, 5 if stages[-1].data == "finetune" else 7]
    train_imagenet.main(["--cfg", str(path), *shrunk, "--eval-only", f"--init={tmp_path / 'run'}"])
    assert f" {100 * epochs[-1]['top1']:.3f} |" in capsys.readouterr().out
    train_imagenet.main(["--cfg", str(tmp_path / "run" / "recipe.yaml"), "--log.name=run"])
    assert rows(tmp_path / "run") == epochs, "a finished run was trained again"


@pytest.mark.usefixtures("no_report")
def test_the_resolution_rises_within_a_stage(data, tmp_path):
    """FFCV's ResNet recipe in small: the images' size, SGD's rates, the blurred weights."""
    shrunk = ["--cfg", ROOT / "recipes/fast/rn50_ffcv_16ep.yaml", *SMALL, *data, "--model.name=test_resnet",
              "--stage.resolution=96", "--stage.ramp=32,0,3", "--stage.eval_resolution=64", "--stage.epochs=4",
              "--stage.warmup_epochs=1", "--stage.repeats=1", "--stage.batch=32", "--speed.micro_batch=32"]  # fmt: skip
    train_imagenet.main([*map(str, shrunk), f"--log.out={tmp_path}", "--log.name=whole"])
    epochs = rows(tmp_path / "whole")
    assert [row["resolution"] for row in epochs] == [32, 64, 64, 96]
    ends = (2.00003 / 3, 7 / 9, 4 / 9, 1 / 9)  # of each epoch's three steps the last
    assert [row["lr"] for row in epochs] == pytest.approx([1.7 * part for part in ends], rel=1e-4)
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    assert any(name.endswith(".blur") for name in weights)


@pytest.mark.usefixtures("no_report")
def test_a_later_stage_starts_alone_without_the_files_of_those_before(two_sets, tmp_path):
    base = ["--cfg", str(ROOT / "recipes/in21k_s_90ep.yaml"), *SMALL, "--stage.batch=48", "--speed.micro_batch=24",
            "--stage.epochs=1", "--stage.warmup_epochs=0", f"--log.out={tmp_path}", "--log.name=run"]  # fmt: skip
    base += [f"--data.finetune_{part}={two_sets / 'finetune.beton'}" for part in ("train", "val")]
    train_imagenet.main([*base, "--start-at=finetune_224", f"--init={two_sets / 'init.safetensors'}"])
    assert [row["stage"] for row in rows(tmp_path / "run")] == ["finetune_224", "finetune_384"]


@pytest.mark.usefixtures("no_report")
def test_the_best_weights_are_kept_and_a_stage_that_learns_nothing_ends_early(data, tmp_path, capsys):
    words = ["--cfg", str(ROOT / "recipes/finetune_own.yaml"), *SMALL, *data, f"--log.out={tmp_path}", "--log.name=run",
             "--stage.head=keep", "--stage.lr=1e-12", "--stage.min_lr=0", "--stage.warmup_lr=0", "--stage.epochs=9",
             "--stage.warmup_epochs=0", "--stage.patience=2", "--stage.best=val_loss"]  # fmt: skip
    torch.manual_seed(0)
    given = model.create("deit3_micro_patch16_224", resolution=32, classes=5, drop_path=0.05, layer_scale=1e-4)
    save_file(given.state_dict(), tmp_path / "given.safetensors")
    words.append(f"--init={tmp_path}/given.safetensors")
    train_imagenet.main([*words, "--stage.flip=0"])
    said, epochs = capsys.readouterr().out, rows(tmp_path / "run")
    losses = [row["val_loss"] for row in epochs]
    best = 1 + losses.index(min(losses))
    assert len(epochs) == best + 2 < 9 and epochs[-1]["ended_early"] == 1
    assert f"no better val_loss since epoch {best}; it ends here" in said
    assert report_of(tmp_path / "run").finished
    judged = f"balanced top-1 {100 * epochs[-1]['balanced']:.2f} % (mean of the classes); the largest class is 20.83 %"
    assert judged in said
    train_imagenet.main(["--eval-only", f"--init={tmp_path}/run/finetune_best.safetensors", "--speed.device=cpu"])
    (row,) = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert row["loss"] == pytest.approx(min(losses), rel=1e-6) and row["majority"] == pytest.approx(20 / 96)
    train_imagenet.main([*words, "--stage.flip=0"])
    assert rows(tmp_path / "run") == epochs, "a stage that ended early goes on"


# --- printing ------------------------------------------------------------------------------------------------------


def test_print_shows_the_resolved_recipe_and_stops(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_imagenet.main(["--cfg", str(ROOT / "recipes/vit_s_400ep.yaml"), "--print", "--stage.epochs=70"])
    printed = capsys.readouterr().out
    assert "epochs: 70" in printed
    assert "repeats: 3" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extra", [[], ["--at-throughput=1000"], ["--measure", "--speed.device=cpu"]])
def test_what_is_printed_is_the_recipe(tmp_path, capsys, extra):
    """With the table of its stages as comments."""
    cfg = ["--cfg", str(ROOT / "recipes/smoke.yaml"), "--stage.lr=3.3e-2"]
    train_imagenet.main([*cfg, "--print", *extra])
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_recipe(tmp_path / "printed.yaml") == load_recipe(cfg[1], {"stage.lr": "3.3e-2"})
    table = [line.split() for line in printed.splitlines() if line.startswith("# ")]
    assert [row[1] for row in table[1:3]] == ["first_32", "second_48"]
    assert all((row[-1] == "-") == (not extra) for row in table[1:3])


@pytest.mark.parametrize("device, seen", [("cpu", "''"), ("auto", "'0,1'")])
def test_a_run_on_the_cpu_leaves_gpus_alone(tmp_path, device, seen):
    """A stand-in for torch says which GPUs it would be shown."""
    (tmp_path / "torch.py").write_text("import os\nraise SystemExit(repr(os.environ['CUDA_VISIBLE_DEVICES']))")
    words = [sys.executable, "train_imagenet.py", "--cfg", "recipes/smoke.yaml", f"--speed.device={device}"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1", "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stderr.strip() == seen


def test_start_at_and_new_heads_need_weights(tmp_path, data, capsys):
    """Also where an older checkpoint would not be taken for weights."""
    for cfg in ("recipes/transfer/cifar10.yaml", "recipes/smoke.yaml"):
        start = ["--start-at=second_48"] if "smoke" in cfg else []
        with pytest.raises(SystemExit):
            train_imagenet.main(["--cfg", str(ROOT / cfg), *SMALL, *data, f"--log.out={tmp_path}", *start])
        assert "it needs --init" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path, data, capsys):
    with locked(tmp_path / "mine" / "run.lock", "mine"), pytest.raises(SystemExit) as ended:
        train_imagenet.main(["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, f"--log.out={tmp_path}",
                             "--log.name=mine"])  # fmt: skip
    assert ended.value.code == 2
    assert f"error: {tmp_path / 'mine'} is being written by another process" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["run.lock"]


@pytest.mark.usefixtures("no_report")
def test_a_folder_is_not_taken_for_that_of_other_data(tmp_path, jpg_beton, raw_beton, capsys):
    """The same recipe for other data with as many classes, as in a cross-validation: refused, and nothing is changed.
    The same data elsewhere are the same run."""

    def arguments(train):
        return ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, "--stage.epochs=1", f"--log.out={tmp_path}",
                "--log.name=run", f"--data.train={train}", f"--data.val={jpg_beton}"]  # fmt: skip

    train_imagenet.main(arguments(jpg_beton))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train_imagenet.main(arguments(raw_beton))
    message = capsys.readouterr().err
    assert (ended.value.code, message.count("\n")) == (2, 1)
    assert "one of another run (its train data have other images, labels or class names)" in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "moved.beton").write_bytes(jpg_beton.read_bytes())
    train_imagenet.main(arguments(tmp_path / "moved.beton"))


LEARNS = [*SMALL, "--stage.resolution=48", "--stage.epochs=3", "--stage.warmup_epochs=0", "--stage.drop_path=0.1"]


def recipe_for_resuming(tmp_path, data):
    smoke = ROOT / "recipes" / "smoke.yaml"
    return ["--cfg", smoke, *LEARNS, *data, "--seed=3"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks, number", [(1, signal.SIGKILL), (2, signal.SIGTERM)])
def test_killed_or_preempted_it_ends_with_the_same_bits(tmp_path, data, ranks, number, start_python, run_python):
    """Two ranks: torchrun passes SIGTERM on and kills after 30 seconds; the next log point would be the epoch's end."""
    base = [*recipe_for_resuming(tmp_path, data), "--log.every=100"]
    whole = run_python(command(*base, f"--log.out={tmp_path}", "--log.name=whole"), ranks=ranks)
    assert whole.returncode == 0, whole.stderr
    words = command(*base, f"--log.out={tmp_path}", "--log.name=killed")
    if ranks > 1:
        killed = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    else:
        (killed,) = start_python(words)
    log, deadline = tmp_path / "killed" / "log.jsonl", time.time() + 200
    while not (log.exists() and len(rows(tmp_path / "killed")) >= 2):
        assert time.time() < deadline
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    killed.send_signal(number)
    output, errors = killed.communicate(timeout=60)
    if number == signal.SIGTERM:
        step = checkpoint.read(checkpoint.saved(tmp_path / "killed" / "checkpoints")[-1])["step"]
        assert f"stopped at step {step}, as asked" in output, errors
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    again = run_python(words, ranks=ranks)
    assert again.returncode == 0, again.stderr
    assert "going on at stage" in again.stdout
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    names = [(row["stage"], row["epoch"], row["top1"], row["loss"]) for row in rows(tmp_path / "whole")]
    assert names == [(row["stage"], row["epoch"], row["top1"], row["loss"]) for row in rows(tmp_path / "killed")]
    assert len(names) == 6


@pytest.mark.timeout(400)
def test_two_ranks_and_small_pieces_compute_the_same_steps(tmp_path, data, run_python):
    """The same global batches, draws and masks: losses agree within rounding."""
    base = [*recipe_for_resuming(tmp_path, data), f"--log.out={tmp_path}", "--stage.epochs=1"]
    losses = {}
    for name, ranks, extra in (("one", 1, []), ("pieces", 1, ["--speed.micro_batch=4"]),
                               ("two", 2, ["--speed.micro_batch=2"])):  # fmt: skip
        done = run_python(command(*base, f"--log.name={name}", *extra), ranks=ranks)
        assert done.returncode == 0, done.stderr
        losses[name] = [row["loss"] for row in rows(tmp_path / name, "step")]
        assert len(losses[name]) == 12
    kept = [predictions.load(tmp_path / name / predictions.FILE) for name in ("one", "two")]
    assert all(len(made.labels) == 96 and np.array_equal(made.labels, kept[0].labels) for made in kept)
    assert kept[1].confidence == pytest.approx(kept[0].confidence, abs=1e-4)
    assert losses["pieces"] == pytest.approx(losses["one"], abs=1e-5)
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5)
    assert max(losses["one"]) - min(losses["one"]) > 1e-3


@pytest.mark.timeout(400)
def test_stopped_with_two_ranks_it_goes_on_with_one_and_then_with_two(tmp_path, data, start_python, run_python):
    """SIGUSR1 in the middle of an epoch; the steps are those of a run that was never stopped."""
    base = [*recipe_for_resuming(tmp_path, data), f"--log.out={tmp_path}", "--stage.epochs=2", "--speed.micro_batch=4"]
    whole = run_python(command(*base, "--log.name=whole"))
    assert whole.returncode == 0, whole.stderr
    reached = 0
    for ranks in (2, 1):
        running = start_python(command(*base, "--log.name=run"), ranks=ranks)
        log, deadline = tmp_path / "run" / "log.jsonl", time.time() + 200
        while not (log.exists() and len(rows(tmp_path / "run", "step")) >= reached + 2):
            assert time.time() < deadline
            assert running[0].poll() is None, running[0].communicate()
            time.sleep(0.01)
        running[-1].send_signal(signal.SIGUSR1)
        output, errors = running[0].communicate(timeout=200)
        assert [process.wait(20) for process in running] == [128 + signal.SIGUSR1] * ranks, errors
        saved = torch.load(checkpoint.saved(tmp_path / "run" / "checkpoints")[-1], weights_only=True)
        assert f"stopped at step {saved['step']}, as asked" in output
        assert reached < saved["step"] < 24
        reached = saved["step"]
    last = run_python(command(*base, "--log.name=run", "--speed.parallel=fsdp"), ranks=2)
    assert last.returncode == 0, last.stderr
    for kind in ("step", "epoch"):
        one, other = (rows(tmp_path / name, kind) for name in ("whole", "run"))
        assert [row["step"] for row in one] == [row["step"] for row in other]
        assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], abs=1e-5)


def test_official_files_are_evaluated_and_what_does_not_fit_is_listed(tmp_path, data, capsys):
    made = model.create("deit3_micro_patch16_224", resolution=48, classes=5, drop_path=0.0, layer_scale=0.1)
    torch.nn.init.normal_(made.head.weight)
    official = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
                for key, value in made.state_dict().items()}  # fmt: skip
    torch.save({"model": official, "args": argparse.Namespace(lr=1.0)}, tmp_path / "official.pth")
    save_file(made.state_dict(), tmp_path / "ours.safetensors")
    base = ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, "--eval-only"]
    said = []
    for name in ("official.pth", "ours.safetensors"):
        train_imagenet.main([*base, f"--init={tmp_path / name}", "--stage.resolution=64"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "|   5 |     96 | 64 |".replace(" ", "") in said[0].replace(" ", "")
    with pytest.raises(SystemExit):
        train_imagenet.main([*base, f"--init={tmp_path / 'official.pth'}", "--model.classes=6"])
    complaint = capsys.readouterr().err
    assert "2 of the weights do not fit the model: head.weight: (5, 128), the model has (6, 128);" in complaint
    assert "set stage.head: new" in complaint


def test_it_learns(tmp_path, data, monkeypatch):
    """96 tiles of 4 photographs in 5 classes are memorised: well above chance, 20 %. With a thread per core."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    train_imagenet.main(
        ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, f"--log.out={tmp_path}", "--log.name=run",
         "--stage.resolution=64", "--stage.epochs=12", "--stage.augment=none", "--stage.jitter=none", "--stage.mixup=0",
         "--stage.cutmix=0", "--stage.repeats=1", "--stage.crop=center", "--stage.flip=0", "--stage.loss=ce",
         "--stage.lr=1e-3", "--stage.optimizer=adamw", "--stage.min_lr=1e-5"]
    )  # fmt: skip
    epochs = rows(tmp_path / "run")
    assert epochs[-1]["top1"] > 0.6
    made = predictions.load(tmp_path / "run" / predictions.FILE)
    assert (made.labels == made.predicted).mean() == pytest.approx(epochs[-1]["top1"], rel=1e-6)
    assert f"{100 * epochs[-1]['top1']:.2f}" in (tmp_path / "run" / "report.html").read_text()
    assert epochs[-1]["loss"] < epochs[0]["loss"]


@pytest.mark.usefixtures("no_report")
def test_a_first_start_compiles_before_its_first_step_and_says_so(tmp_path, data, monkeypatch, capsys):
    """So neither a step's seconds, nor the time left that is made of them, nor the wait for data holds the compiler."""
    ended = []

    def prepare_kernels(say, params):
        say("compiling kernels")
        ended.append(time.time())

    monkeypatch.setattr(train_imagenet, "prepare_kernels", prepare_kernels)
    train_imagenet.main(
        ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, f"--log.out={tmp_path}", "--log.name=run",
         "--stage.epochs=1", "--stage.warmup_epochs=0"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert said.index("compiling kernels") < said.index("epoch")
    first = rows(tmp_path / "run", "step")[0]
    assert first["at"] + 1 - first["seconds"] > ended[0] - 0.1  # `at` is in whole seconds


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("ema", [1e-9, 1 - 1e-7])
def test_every_evaluation_has_the_averaged_weights_too(ema, tmp_path, data, capsys):
    """An average without memory is the raw weights; one that never forgets is what the stage began with."""
    train_imagenet.main(
        ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, f"--log.out={tmp_path}", "--log.name=run",
         "--stage.epochs=3", "--log.eval_every=2", f"--stage.ema={ema}", "--stage.start=last",
         "--stage.lr=3e-3", "--stage.optimizer=adamw", "--stage.mixup=0", "--stage.cutmix=0", "--stage.loss=ce"]
    )  # fmt: skip
    epochs = rows(tmp_path / "run")[:3]
    evaluated = [row for row in epochs if "top1" in row]
    assert [row["epoch"] for row in evaluated] == [2, 3]
    raw, averaged = ([row[key] for row in evaluated] for key in ("top1", "ema_top1"))
    assert len(set(raw)) > 1
    assert averaged == raw if ema < 0.5 else len(set(averaged)) == 1
    assert f"EMA {100 * averaged[-1]:5.2f} %" in capsys.readouterr().out


BAD = {
    "images without a patch": (["--stage.resolution=8"], "deit3_micro_patch16_224 cannot take images of 8 x 8 px"),
    "no augmentation": (["--stage.augment=garbage"], "stages first_32, second_48: augment: 'garbage' is not"),
    "typo in a key": (["--stage.epohcs=3"], "nearest is --stage.epochs"),
    "wrong type": (["--stage.epochs=many"], "whole number"),
    "missing recipe": (["--cfg", "recipes/nothing.yaml"], "cannot be read"),
    "missing data": (["--data.train=nothing.beton"], "no such file"),
    "not a beton": (["--data.train={tmp}/other.beton"], "not a .beton file"),
    "truncated beton": (["--data.val={tmp}/half.beton"], "truncated or damaged"),
    "batch larger than the data": (["--stage.batch=4096", "--stage.mix_chunk=256"], "do not fill one batch"),
    "start without weights": (["--start-at=second_48"], "needs --init"),
    "unknown stage": (["--start-at=third", "--init=x"], "the stages of"),
    "missing weights": (["--init={tmp}/nothing.safetensors"], "no such file"),
    "evaluation of nothing": (["--eval-only"], "needs --init"),
    "evaluation that nobody asked for": (["--eval.data=x.beton"], "belongs to --eval-only"),
    "too few classes": (["--model.classes=2"], "labels go up to 4"),
    "unknown model": (["--model.name=deit4_small"], "nearest names"),
    "piece that does not divide": (["--speed.micro_batch=6"], "micro_batch"),
    "half precision on a CPU": (["--speed.precision=fp16"], "needs a GPU"),
    "speed without a plan": (["--measure"], "belong to --print"),
    "no speed": (["--print", "--at-throughput=0"], "invalid throughput value"),
    "batch larger than the planned data": (["--print", "--stage.batch=4096"], "do not fill one batch"),
    "second data set without a use": (["--data.finetune_val=x"], "a recipe has both"),
}


@pytest.mark.parametrize("arguments, words", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_status_2(tmp_path, data, jpg_beton, arguments, words, capsys):
    (tmp_path / "other.beton").write_bytes(b"GIF89a" * 100)
    (tmp_path / "half.beton").write_bytes(jpg_beton.read_bytes()[: jpg_beton.stat().st_size // 2])
    given = [f"--log.out={tmp_path}", "--log.name=run", *(word.format(tmp=tmp_path) for word in arguments)]
    with pytest.raises(SystemExit) as ended:
        train_imagenet.main(["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, *given])
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert words in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1  # also where both stages have it
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.usefixtures("no_report")
def test_a_bad_sample_stops_the_run_or_is_replaced_and_counted(tmp_path, data, jpg_beton, capsys):
    reader, content = Reader(str(jpg_beton)), bytearray(jpg_beton.read_bytes())
    place = int(reader.metadata["f0"]["data_ptr"][17])
    content[place : place + 2] = bytes(2)
    (tmp_path / "damaged.beton").write_bytes(content)
    base = ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, f"--log.out={tmp_path}", "--stage.repeats=1"]
    base += [f"--data.train={tmp_path / 'damaged.beton'}"]
    with pytest.raises(SystemExit):
        train_imagenet.main([*base, "--log.name=stop"])
    assert "sample 17 could not be decoded" in capsys.readouterr().err
    train_imagenet.main([*base, "--log.name=replace", "--data.on_bad_sample=replace"])
    assert [row["bad_samples"] for row in rows(tmp_path / "replace")] == [1, 1]
    assert rows(tmp_path / "replace", "step")[-1]["bad_samples"] == 1
    assert "bad samples replaced: 1; in this rank sample 17 (1x)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train_imagenet.main([*base, "--log.name=none", "--data.on_bad_sample=replace", "--data.bad_limit=0"])
    assert "more than data.bad_limit 0 allows: sample 17 (1x)" in capsys.readouterr().err


# --- limits --------------------------------------------------------------------------------------------------------


def beton_of(path, images, classes):
    """The first `images` of a grey ramp, labels 0 to `classes` - 1, by stock FFCV."""

    class Samples:
        def __len__(self):
            return images

        def __getitem__(self, index):
            return np.full((40, 50, 3), 10 * index, np.uint8), index % classes

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Samples())
    return path


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("loss, images, classes", [("bce", 1, 1), ("ce", 6, 1)])
def test_one_image_and_one_class_are_enough(loss, images, classes, tmp_path):
    """And as many workers as you like: there are not more than cores."""
    path = beton_of(tmp_path / "x.beton", images, classes)
    train_imagenet.main(
        ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, f"--data.train={path}", f"--data.val={path}",
         "--stage.batch=1", "--stage.mixup=0", "--stage.cutmix=0", "--stage.smoothing=0", f"--stage.loss={loss}",
         "--data.workers=500", f"--log.out={tmp_path}", "--log.name=run"]
    )  # fmt: skip
    epochs = rows(tmp_path / "run")
    assert [row["step"] for row in epochs] == [images, 2 * images]
    assert all(row["val_images"] == images and row["loss"] >= 0 and row["bad_steps"] == 0 for row in epochs)
    assert classes > 1 or epochs[-1]["top1"] == 1.0


def test_one_image_cannot_be_mixed_nor_fill_a_batch(tmp_path, capsys):
    path = beton_of(tmp_path / "x.beton", 1, 1)
    capsys.readouterr()  # FFCV's progress
    complaints = {1: "batch 1 must be a multiple of mix_chunk 2", 2: "1 images do not fill one batch of 2"}
    for batch, words in complaints.items():
        keys = [f"--stage.batch={batch}", "--stage.mix_chunk=2"]
        with pytest.raises(SystemExit, match="2"):
            train_imagenet.main(["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, f"--data.train={path}", *keys,
                                 f"--data.val={path}", f"--log.out={tmp_path}", "--log.name=run"])  # fmt: skip
        said = capsys.readouterr().err
        assert words in said
        assert all(line.startswith("error: ") for line in said.splitlines())


def test_more_ranks_than_images(tmp_path):
    """Training needs a sample for each rank in each batch; evaluation counts each image once, in some ranks none."""
    path, stage = beton_of(tmp_path / "x.beton", 2, 2), load_recipe(ROOT / "recipes/smoke.yaml").stages[1]
    stage = dataclasses.replace(stage, mixup=0.0, cutmix=0.0, batch=3)
    for rank in range(3):
        with pytest.raises(UserError, match="2 images do not fill one batch of 3"):
            train_loader(path, 2, stage, seed=0, placement=Placement(rank=rank, world=3))
        with pytest.raises(UserError, match="batch 2 does not divide among 3 processes"):
            train_loader(path, 2, dataclasses.replace(stage, batch=2), seed=0, placement=Placement(rank=rank, world=3))
    loaders = [
        eval_loader(path, 2, stage, batch=64, placement=Placement(rank=rank, world=3, workers=1)) for rank in range(3)
    ]
    shown = [[int(label) for _, labels in loader.epoch(0) for label in labels] for loader in loaders]
    assert sorted(label for labels in shown for label in labels) == [0, 1]
    assert [] in shown


def test_bad_input_ends_the_process_with_status_2(tmp_path):
    words = [sys.executable, *command("--cfg", ROOT / "recipes/smoke.yaml", "--data.train=nothing.beton")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_another_recipe_does_not_overwrite_a_run(tmp_path, data, capsys):
    base = ["--cfg", str(ROOT / "recipes/smoke.yaml"), *SMALL, *data, f"--log.out={tmp_path}", "--log.name=run"]
    train_imagenet.main(base)
    with pytest.raises(SystemExit):
        train_imagenet.main([*base, "--stage.lr=0.5"])
    assert "lr" in capsys.readouterr().err
