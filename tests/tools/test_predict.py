"""What is predicted of a file is what --eval-only says of its .beton: by tools.predict, of a run and of an export, and
by the few lines of the model card, which use Pillow and timm alone."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_imagenet
import write_datasets
from tests.tools.test_export import run_folder
from tools import card, export, predict, preview

KINDS = ("rgb", "alpha", "turned", "palette", "gray")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """pets/val/<class>/ with pictures of every kind, the same in train/, their .beton, and a run with an export."""
    root, noise = tmp_path_factory.mktemp("predict"), np.random.default_rng(0)
    for name in ("cats", "dogs", "owls"):
        folder = root / "pets" / "val" / name
        folder.mkdir(parents=True)
        for number, kind in enumerate(KINDS):
            colors = noise.integers(0, 256, (7, 9, 4), dtype=np.uint8)
            picture = Image.fromarray(colors).resize((90, 70), Image.Resampling.BICUBIC)
            if kind != "alpha":
                picture = picture.convert({"palette": "P", "gray": "L"}.get(kind, "RGB"))
            exif = Image.Exif()
            exif[0x0112] = 6 if kind == "turned" else 1
            options = {"transparency": 3} if kind == "palette" else {}
            picture.save(folder / f"{number}_{kind}.png", exif=exif, **options)
    (root / "pets" / "train").symlink_to("val")
    words = [f"--data.source={root}/pets", f"--data.out={root}/pets", "--image.mode=raw", "--image.max_side=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["write_datasets.py", *words, "--data.workers=1"])
        write_datasets.main()
    keys = {"model.name": "deit3_micro_patch16_224", "stage.resolution": "48", "stage.eval_crop": "0.9",
            "model.layer_scale": "0.1"}  # fmt: skip
    run_folder(root / "run", {**keys, "data.val": f"{root}/pets_val.beton"}, classes=3, data=root / "pets_train.beton")
    export.main([str(root / "run"), f"--out={root}/exported"])
    return root


@pytest.fixture(scope="module")
def evaluated(world):
    """What --eval-only finds: the row of evaluations.json."""
    words = ["--cfg", str(world / "run" / "recipe.yaml"), "--eval-only", f"--init={world}/run", "--speed.device=cpu"]
    train_imagenet.main(words)
    return json.loads((world / "run" / "evaluations.json").read_text())[0]


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_cards_lines_agree_with_eval_only_to_the_last_image(world, evaluated):
    code = (world / "exported" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert code.strip() == card.USE
    code = compile(code.replace("FOLDER", str(world / "exported")).replace('"photo.jpg"', "photo"), "card", "exec")
    loss, right = 0.0, 0
    files = sorted((world / "pets" / "val").rglob("*.png"))
    rows = predicted(world, "run", "--probabilities")
    for file, row in zip(files, rows, strict=True):
        said = {"photo": file}
        exec(code, said)
        shares = said["logits"].softmax(1)[0]
        label = said["names"].index(file.parent.name)
        loss, right = loss - float(shares[label].log()), right + (int(shares.argmax()) == label)
        assert row["file"] == str(file) and row["label"] == file.parent.name
        assert [float(row[f"p({name})"]) for name in said["names"]] == pytest.approx(shares.tolist(), abs=2e-6)
    assert right == round(evaluated["top1"] * len(files))
    assert loss / len(files) == pytest.approx(evaluated["loss"], abs=1e-5)


def predicted(world, model, *words):
    out = world / f"{model}.csv"
    predict.main([str(world / model), str(world / "pets" / "val"), f"--out={out}", "--device=cpu", *words])
    return table(out)


def test_an_export_says_what_its_run_says(world, monkeypatch):
    ours = predicted(world, "run", "--top=3")
    assert list(ours[0]) == ["file", "label", "class", "probability", "class_2", "probability_2", "class_3",
                             "probability_3"]  # fmt: skip
    monkeypatch.setattr(export, "read", None)  # the run is not needed
    assert predicted(world, "exported", "--top=3") == ours


def test_features_sheet_and_a_file_that_is_none(world, capsys):
    (world / "loose").mkdir()
    bad = world / "loose" / "cut.jpg"
    bad.write_bytes(b"\xff\xd8\xffnothing")
    words = [str(world / "run"), str(bad), str(world / "pets" / "val"), f"--out={world}/a.json", "--batch=1"]
    predict.main([*words, f"--features={world}/f.npz", f"--sheet={world}/s.png", "--device=cpu"])
    said = capsys.readouterr().out
    rows = json.loads((world / "a.json").read_text())
    assert rows[0] == {"file": str(bad), "error": rows[0]["error"]} and "is not an image" in rows[0]["error"]
    right = [row["label"] == row["class"] for row in rows[1:]]
    assert f"15 pictures by {world}/run; {sum(right)} of 15 right" in said and f"{bad}: is not an image" in said
    features = np.load(world / "f.npz")
    assert features["files"].tolist() == [row["file"] for row in rows[1:]]
    network = export.read(world / "run").network
    head = network.head(torch.from_numpy(features["features"])).softmax(1).max(1).values
    assert head.tolist() == pytest.approx([row["probability"] for row in rows[1:]], abs=2e-6)
    assert len(np.unique(np.asarray(Image.open(world / "s.png").convert("L")))) > 50


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "{root}/pets", "--out=a.csv"], "neither a run's folder nor an export"),
        (["{root}/run", "{root}/none", "--out=a.csv"], "none: no such file or folder"),
        (["{root}/run", "{root}/pets", "--out=a.txt"], "must end with .csv or .json"),
        (["{root}/run", "{root}/pets", "--out={root}/none/a.csv"], "there is no folder"),
        (["{root}/run", "{root}/pets", "--out=a.csv", "--device=tpu"], "invalid choice: 'tpu'"),
        (["{root}/run", "{root}/pets", "--out=a.csv", "--top=0"], "it must be 1 to 10,000"),
    ],
)
def test_what_cannot_be_is_one_line(world, capsys, words, said):
    with pytest.raises(SystemExit, match="2"):
        predict.main([word.format(root=world) for word in words])
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_preview_shows_the_pixels_of_training(world):
    for split, number in (("alpha", 0), ("turned", 1)):
        (file,) = (world / "pets" / "val" / "cats").glob(f"*_{split}.png")
        (shown,) = preview.stored_images(Path(file), 1)
        stored = preview.stored_images(world / "pets_val.beton", 15)[number + 1]
        np.testing.assert_array_equal(shown.picture, stored.picture)
