"""What --eval-only says: against NumPy on the logits of timm's model, for every way in which classes are matched."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import train_imagenet
from config.recipe import load_recipe
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import describe
from training.evaluation import evaluate_only, records
from training.evaluation.labels import OutputNames, class_map, output_names
from training.loading import eval_loader
from training.network.adapt_weights import synsets
from training.saving.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ["--cfg", str(ROOT / "recipes/smoke.yaml"), "--stage.resolution=32", "--stage.batch=16",
         "--stage.mix_chunk=8", "--data.workers=1", "--log.tensorboard=false"]  # fmt: skip
SHOWN = json.loads((Path(timm.__file__).parent / "data/_info/imagenet_real_labels.json").read_text())


def made(tmp_path, outputs, seed=0):
    """Random weights that differ enough between images for the marks to say something; and timm's model with them."""
    torch.manual_seed(seed)
    network = timm.create_model("deit3_micro_patch16_224", img_size=32, num_classes=outputs).eval()
    torch.nn.init.normal_(network.head.weight)
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path, network


def named(tmp_path, beton, classes=None, files=None):
    """The same .beton under a name of its own, with other sidecars."""
    path = tmp_path / "set.beton"
    path.symlink_to(beton)
    if classes is not None:
        path.with_suffix(".json").write_text(json.dumps({"classes": list(classes)}))
    if files is not None:
        path.with_suffix(".files.txt").write_text("".join(f"{name}\n" for name in files))
    return path


@torch.inference_mode()
def logits_of(network, beton, side=32):
    stage = load_recipe(ROOT / "recipes/smoke.yaml", {"stage.resolution": str(side)}).stages[-1]
    images, labels = next(iter(eval_loader(beton, 96, stage, batch=96).epoch(0)))
    mean, std = (torch.tensor(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return network(((images / 255 - mean) / std).permute(0, 3, 1, 2)).double().numpy(), labels.numpy().copy()


def shares(logits, answers):
    """(top-1, top-5) of images with answers, by sorting."""
    ranking = [row.tolist() for row in np.argsort(-logits, axis=1)]
    pairs = [(row, set(answer)) for row, answer in zip(ranking, answers, strict=True) if answer]
    return tuple(np.mean([bool(answer & set(row[:k])) for row, answer in pairs]) for k in (1, 5))


def evaluated(*arguments, out):
    train_imagenet.main([*SMOKE, "--eval-only", f"--eval.out={out}", *map(str, arguments)])
    return json.loads((out / "evaluations.json").read_text())


def test_of_some_of_the_classes_the_model_chooses_among_these(tmp_path, jpg_beton, capsys):
    """200 of 1,000 in ImageNet-A; here 5 of 12, in another order."""
    weights_file, network = made(tmp_path, 12)
    train = tmp_path / "train.beton"
    train.symlink_to(jpg_beton)
    (tmp_path / "train.json").write_text(json.dumps({"classes": list("abcdefghijkl")}))
    other = named(tmp_path, jpg_beton, "kcalf")
    (row,) = evaluated(f"--init={weights_file}", f"--data.train={train}", f"--eval.data={other}", out=tmp_path / "out")
    logits, labels = logits_of(network, jpg_beton)
    chosen = logits[:, [10, 2, 0, 11, 5]]
    assert (row["top1"], row["top5"]) == shares(chosen, [{label} for label in labels])
    loss = (np.log(np.exp(chosen).sum(1)) - chosen[np.arange(96), labels]).mean()
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert row["top1"] != shares(logits[:, :5], [{label} for label in labels])[0]
    assert (row["images"], row["classes"], row["labels"]) == (96, 5, "own")
    lines = list(csv.reader((tmp_path / "out" / row["by_class"]).open()))
    assert lines[0] == ["class", "images", "top1", "top5"]
    assert [line[0] for line in lines[1:]] == list("kcalf")
    for label, line in enumerate(lines[1:]):
        of_class = labels == label
        assert int(line[1]) == of_class.sum()
        assert float(line[2]) == pytest.approx((chosen.argmax(1) == label)[of_class].mean(), abs=1e-6)
    said = capsys.readouterr().out
    assert f" {100 * row['top1']:.3f} |" in said
    assert row["by_class"] in said


def test_classes_that_are_numbers_are_the_models_numbers(tmp_path, jpg_beton):
    """ImageNet-V2 comes in folders 0 to 999, which sort as text: 0, 1, 10."""
    weights_file, network = made(tmp_path, 1000)
    (row,) = evaluated(f"--init={weights_file}", f"--data.val={named(tmp_path, jpg_beton, '30412')}",
                       f"--data.train={jpg_beton}", out=tmp_path / "out")  # fmt: skip
    logits, labels = logits_of(network, jpg_beton)
    assert (row["top1"], row["top5"]) == shares(logits[:, [3, 0, 4, 1, 2]], [{label} for label in labels])


def test_numbers_in_the_training_data_are_the_models_class_names(tmp_path, jpg_beton):
    """Folders 0 to 999 as one's own classes are not ImageNet's; they sort as text: 0, 1, 10."""
    numbers = sorted(str(number) for number in range(1000))
    train = tmp_path / "train.beton"
    train.symlink_to(jpg_beton)
    (tmp_path / "train.json").write_text(json.dumps({"classes": numbers}))
    assert output_names(1000, None, train) == OutputNames(tuple(numbers), True)
    assert output_names(1000, None, "missing.beton", train) == OutputNames(tuple(synsets(1000)), False)
    assert class_map(describe(train), output_names(1000, None, train), 1000) is None


@pytest.mark.parametrize("extra", [["--stage.resolution=8"], ["--model.name=test_vit", "--stage.resolution=40"]])
def test_a_resolution_that_the_model_cannot_take_is_one_line(extra, tmp_path, jpg_beton, capsys):
    words = [f"--init={made(tmp_path, 5)[0]}", f"--data.train={jpg_beton}", f"--data.val={jpg_beton}", *extra]
    with pytest.raises(SystemExit) as ended:
        evaluated(*words, out=tmp_path / "out")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "cannot take images of" in said
    assert said.count("\n") == 1


def real_names(logits):
    """For 96 images names of public ones: every third shows nothing that the model says, every fifth nothing at all."""
    names = []
    for number, ranked in enumerate(np.argsort(-logits, axis=1)):
        wanted = set(ranked[:1] if number % 2 else ranked[2:3])
        fits = (lambda shown: not shown) if number % 5 == 0 else (
            (lambda shown, r=ranked: shown and not set(shown) & set(r[:5])) if number % 3 == 0
            else (lambda shown, w=wanted: w <= set(shown)))  # fmt: skip
        names.append(next(n for n in range(50_000) if fits(SHOWN[n])))
    return names


def test_real_labels_are_deduced_from_the_files_names_also_on_three_ranks(tmp_path, jpg_beton, run_python):
    weights_file, network = made(tmp_path, 1000)
    logits, labels = logits_of(network, jpg_beton)
    numbers = real_names(logits)
    files = [f"val/n{number}/ILSVRC2012_val_{number + 1:08d}.JPEG" for number in numbers]
    val = named(tmp_path, jpg_beton, files=files)
    arguments = [f"--init={weights_file}", f"--data.val={val}", "--data.train=none.beton"]
    own, real = evaluated(*arguments, out=tmp_path / "out")
    assert (own["labels"], real["labels"]) == ("own", "ReaL")
    answers = [set(SHOWN[number]) for number in numbers]
    assert (real["top1"], real["top5"]) == shares(logits, answers)
    assert 0.2 < real["top1"] < real["top5"] < 0.9
    assert real["images"] == sum(map(bool, answers)) == 76
    assert real["loss"] is None
    assert (own["top1"], own["top5"]) == shares(logits, [{label} for label in labels])
    words = [ROOT / "train_imagenet.py", *SMOKE, "--eval-only", *arguments, f"--eval.out={tmp_path / 'three'}"]
    done = run_python(words, ranks=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1 %") == 1
    three = json.loads((tmp_path / "three" / "evaluations.json").read_text())
    for one, other in zip((own, real), three, strict=True):
        assert {**other, "loss": None} == {**one, "loss": None}
        by_class = [(tmp_path / folder / one["by_class"]).read_text() for folder in ("out", "three")]
        assert by_class[0] == by_class[1]
    assert three[0]["loss"] == pytest.approx(own["loss"], rel=1e-6)


def test_a_vit_is_evaluated_at_another_resolution(tmp_path, jpg_beton):
    """Against timm's own resampling of the position embedding."""
    weights_file, network = made(tmp_path, 5)
    bigger = timm.create_model("deit3_micro_patch16_224", img_size=64, num_classes=5).eval()
    places = timm.layers.resample_abs_pos_embed(network.pos_embed.detach(), [4, 4], num_prefix_tokens=0)
    bigger.load_state_dict(load_file(weights_file) | {"pos_embed": places})
    arguments = [f"--init={weights_file}", f"--data.train={jpg_beton}", f"--data.val={jpg_beton}"]
    rows = []
    for extra in ("--stage.resolution=64", "--stage.eval_resolution=64"):
        rows.append(evaluated(*arguments, extra, out=tmp_path / extra)[0])
    logits, labels = logits_of(bigger, jpg_beton, side=64)
    assert (rows[0]["top1"], rows[0]["top5"]) == shares(logits, [{label} for label in labels])
    assert rows[0] == rows[1] and rows[0]["resolution"] == 64


def test_a_run_remembers_its_evaluations_raw_and_averaged(tmp_path, jpg_beton):
    data = [f"--data.{part}={jpg_beton}" for part in ("train", "val")]
    run = tmp_path / "run"
    train_imagenet.main([*SMOKE, *data, f"--log.out={tmp_path}", "--log.name=run"])
    epochs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"epoch"' in line]
    average = RunFolder(load_recipe(run / "recipe.yaml")).load()["ema"]
    saved = load_file(run / "model_ema.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in average.items())
    for source in (run, run / "model_ema.safetensors", run):
        train_imagenet.main([*SMOKE, *data, "--eval-only", f"--init={source}"])
    averaged, raw = json.loads((run / "evaluations.json").read_text())
    assert raw["weights"] == str(run)
    logged = [epochs[-1][name] for name in ("top1", "ema_top1", "val_loss")]
    assert [raw["top1"], averaged["top1"], raw["loss"]] == pytest.approx(logged, abs=1e-4)
    assert raw["loss"] != averaged["loss"]
    assert (run / raw["by_class"]).is_file() and (run / averaged["by_class"]).is_file()


def test_the_watchdog_sees_what_an_evaluation_waits_for(tmp_path, jpg_beton, monkeypatch):
    words, real = [], evaluate_only.Watchdog.watched

    def watched(self, loader, at):
        words.append(at)
        return real(self, loader, at)

    monkeypatch.setattr(evaluate_only.Watchdog, "watched", watched)
    source = f"--init={made(tmp_path, 5)[0]}"
    evaluated(source, f"--data.train={jpg_beton}", f"--data.val={jpg_beton}", out=tmp_path / "out")
    assert words == [f"evaluating on {jpg_beton}"]


def test_each_evaluation_keeps_its_own_classes(tmp_path, jpg_beton):
    """Another crop, the mirror images, weights of the same name elsewhere: none overwrites the numbers of another; the
    same again does."""
    files = []
    for seed, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        files.append(made(tmp_path / name, 5, seed)[0])
    given = [f"--data.{part}={jpg_beton}" for part in ("train", "val")]
    for extra in ([], ["--stage.eval_crop=0.5"], ["--stage.eval_flip=true"], []):
        evaluated(f"--init={files[0]}", *given, *extra, out=tmp_path / "out")
    rows = evaluated(f"--init={files[1]}", *given, out=tmp_path / "out")
    assert len(rows) == 4
    assert len({row["by_class"] for row in rows}) == 4
    for row in rows:
        lines = list(csv.DictReader((tmp_path / "out" / row["by_class"]).open()))
        right = sum(float(line["top1"]) * int(line["images"]) for line in lines)
        assert right / 96 == pytest.approx(row["top1"], abs=1e-5)


def test_a_place_that_takes_no_results_is_one_line(tmp_path, jpg_beton, capsys):
    given = [f"--data.{part}={jpg_beton}" for part in ("train", "val")]
    with pytest.raises(SystemExit) as ended:
        evaluated(f"--init={made(tmp_path, 5)[0]}", *given, out=Path("/proc/nothing"))
    assert ended.value.code == 2
    assert "/proc/nothing cannot be written" in capsys.readouterr().err


def test_too_little_memory_is_one_line_that_names_the_key(tmp_path, jpg_beton, monkeypatch, capsys):
    """A stand-in for a device that takes fewer images at once than are tried first."""
    seen, real = [], evaluate_only.evaluate

    def evaluate(networks, reducers, batches, **named):
        def small(batches):
            for images, labels in batches:
                seen.append(len(images))
                if len(images) > 20:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has ...")
                yield images, labels

        return real(networks, reducers, small(batches), **named)

    monkeypatch.setattr(evaluate_only, "evaluate", evaluate)
    words = [f"--init={made(tmp_path, 5)[0]}", f"--data.train={jpg_beton}", f"--data.val={jpg_beton}"]
    with pytest.raises(SystemExit) as ended:
        evaluated(*words, out=tmp_path / "out")
    assert ended.value.code == 2
    advice = "to evaluate 64 images at once; try --speed.micro_batch=16\n"
    assert capsys.readouterr().err == f"error: stage second_48: cpu has too little memory {advice}"
    (row,) = evaluated(*words, "--speed.micro_batch=16", out=tmp_path / "out")
    assert row["images"] == 96
    assert seen == [64] + 6 * [16]


def test_what_cannot_be_matched_is_refused(tmp_path, jpg_beton):
    known = OutputNames(tuple("abcdefg"), True)
    beton = describe(jpg_beton)._replace(class_names=tuple("abxyz"))
    with pytest.raises(UserError, match="3 of its 5 classes are none of the model's 7: x, y, z"):
        class_map(beton, known, 7)
    with pytest.raises(UserError, match="labels go up to 4"):
        class_map(beton._replace(class_names=None), OutputNames(None, False), 4)
    assert class_map(beton, OutputNames(None, False), 5) is None
    guessed = output_names(1000, None, "missing.beton")
    assert guessed == OutputNames(tuple(synsets(1000)), False)
    words = beton._replace(class_names=tuple(f"word {number}" for number in range(1000)))
    assert class_map(words, guessed, 1000) is None, "a thousand words are taken to be in ImageNet's order"


def test_record_that_is_none(tmp_path):
    (tmp_path / "evaluations.json").write_text("{")
    with pytest.raises(UserError, match="delete it"):
        records.write(tmp_path, [])
