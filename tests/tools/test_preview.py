"""The contact sheet: it shows what the loader would hand out, says what was done, and refuses rubbish."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import loading
from config.recipe import load_recipe
from conversion.encode import encode_rgb
from ffcv_ops import loader
from ffcv_ops.augment import chain, load
from ffcv_ops.kernels import crops
from ffcv_ops.rng import RandomKey
from ffcv_ops.transform import TransformParams, transform_image
from tools import preview, reference

RECIPE = str(Path(__file__).resolve().parents[2] / "recipes" / "vit_s_400ep.yaml")


@pytest.mark.parametrize("fixture", ["jpg_beton", "raw_beton"])
def test_a_sheet_of_a_beton(request, fixture, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    preview.main([str(request.getfixturevalue(fixture)), "--cfg", RECIPE, "--out", str(path), "--images", "2"])
    said = capsys.readouterr().out
    assert "2 images, 3 draws each, stages pretrain_224, finetune_384" in said
    assert "pretrain_224: rrc(224) | flip(.5) | three(gray+solarize+blur) | jitter(.3)\n" in said
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


def test_stored_images_are_those_of_the_file(raw_beton, tiles):
    """With their classes: of 96 tiles the label is the number modulo 5."""
    for shown, index in zip(preview.stored_images(raw_beton, 3), (0, 47, 95), strict=True):
        np.testing.assert_array_equal(shown.picture, tiles[index])
        assert shown.below.startswith(f"class {index % 5}\n")


def test_stored_images_of_shards(tmp_path, tiles, write_shards):
    """As one data set; raw pixels and JPEGs."""
    modes = ["raw"] * 50 + ["jpg"] * 46
    samples = [((encode_rgb(tile, mode=mode, quality=90),), 0) for tile, mode in zip(tiles, modes, strict=True)]
    shown = preview.stored_images(write_shards(tmp_path, samples, (40, 56)), 3)
    first, middle, last = (panel.picture for panel in shown)
    np.testing.assert_array_equal(first, tiles[0])
    np.testing.assert_array_equal(middle, tiles[47])
    jpeg = Image.open(io.BytesIO(samples[95][0][0].data)).convert("RGB")
    np.testing.assert_array_equal(last, np.asarray(jpeg))


def augmented(text):
    """A center crop with these augmentations: its parameters, and what is loaded of them."""
    loaded, plain = load.from_text(text), TransformParams(crop=crops.CENTER)
    return plain._replace(chain=load.compiled(loaded, plain.interpolation)), loaded


def test_words_name_the_operation_of_the_draw(photos):
    image = photos["cat"]
    params, loaded = augmented("three")
    seen = set()
    for draw in range(30):
        said = preview.words(params, loaded, image.shape[:2], 64, key=RandomKey(0, draw))
        shown = transform_image(image, params, resolution=64, key=RandomKey(0, draw))
        is_gray = (shown == shown[..., :1]).all()
        assert is_gray == (said == "gray")
        seen.add(said.split()[0])
    assert seen == {"gray", "solarize", "blur"}


def test_words_name_the_operations_of_randaugment(photos):
    """Where nothing is named, nothing happens, and the crops are those of no policy."""
    image = photos["cat"]
    params, loaded = augmented("rand(rand-p0.3)")
    plain = transform_image(image, augmented("none")[0], resolution=64, key=RandomKey(0, 0))
    named = 0
    for draw in range(40):
        said = preview.words(params, loaded, image.shape[:2], 64, key=RandomKey(0, draw))
        same = np.array_equal(transform_image(image, params, resolution=64, key=RandomKey(0, draw)), plain)
        assert said or same
        named += bool(said) and not same
    assert 15 < named < 32  # about half of them: 1 - .7^2


def test_all_policies_on_one_photograph(jpg_beton, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    preview.main([str(jpg_beton), "--cfg", RECIPE, "--out", str(path), "--all-policies", "--draws", "2"])
    rows = 1 + sum(len(one.examples) for one in chain.declared().values())
    assert f"{rows} policies, 2 draws each" in capsys.readouterr().out
    assert Image.open(path).size[0] == round(1.7 * 3 * 100)


def test_rows_show_the_stages_as_training_sees_them(photos):
    stages = load_recipe(RECIPE).stages
    stored, *panels = preview.row_of(
        preview.stored_panel(photos["cat"], "cat"), [(stage, draw) for stage in stages for draw in (3, 4)], seed=7
    )
    assert stored.below == "cat\n451x300" and stored.above == "stored"
    assert [panel.picture.shape[0] for panel in panels] == [224, 224, 384, 384]
    assert [panel.above for panel in panels[1:3]] == ["pretrain_224, 224 px", "finetune_384, 384 px"]
    plan = loader.plan_of(**loading.train_options(stages[1]))
    np.testing.assert_array_equal(
        panels[3].picture, transform_image(photos["cat"], plan, resolution=384, key=RandomKey(7, 4))
    )


def test_a_comparison_shows_ours_the_reference_and_what_is_between(photos, monkeypatch):
    stage = load_recipe(RECIPE).stages[0]
    ours, theirs, apart = (
        row[1] for row in preview.compared(preview.stored_panel(photos["cat"]), [(stage, 3)], seed=0)
    )
    np.testing.assert_array_equal(ours.picture, theirs.picture)
    assert not apart.picture.any() and "max 0, mean 0.000" in apart.below
    real = reference.show
    monkeypatch.setattr(reference, "show", lambda *args, **keys: real(*args, **keys) ^ 2)
    _, _, apart = (row[1] for row in preview.compared(preview.stored_panel(photos["cat"]), [(stage, 3)], seed=0))
    assert (apart.picture == 64).all() and "max 2, mean 2.000" in apart.below


def test_a_comparison_of_a_beton(jpg_beton, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    preview.main([str(jpg_beton), "--cfg", RECIPE, "--out", str(path), "--compare", "--stage", "finetune_384",
                  "--draws", "2", "--images", "1"])  # fmt: skip
    assert "1 images, 2 draws each, stages finetune_384" in capsys.readouterr().out
    assert Image.open(path).size[0] == round(1.7 * 3 * 100)


def test_rubbish_is_refused(tmp_path, capsys):
    (tmp_path / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as ended:
        preview.main([str(tmp_path / "x.jpg"), "--cfg", RECIPE])
    assert ended.value.code == 2
    assert "neither a .beton nor an image" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "words"), {
    "a folder that is not there": (["--out", "/proc/nothing/x.png"], "x.png cannot be written: No such file"),
    "an unknown ending": (["--out", "x.txt"], "its ending must be one of"),
    "no images": (["--images", "0"], "--images 0: it must be 1 to"),
    "more than a sheet holds": (["--images", "100000"], "--images 100000: it must be 1 to"),
    "no draws": (["--draws", "-1"], "--draws -1: it must be 1 to"),
}.values())  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(arguments, words, jpg_beton, capsys):
    with pytest.raises(SystemExit) as ended:
        preview.main([str(jpg_beton), "--cfg", RECIPE, *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_stage_that_is_not_there(jpg_beton, capsys):
    with pytest.raises(SystemExit) as ended:
        preview.main([str(jpg_beton), "--cfg", RECIPE, "--stage", "pretrain"])
    assert ended.value.code == 2
    assert "are pretrain_224, finetune_384" in capsys.readouterr().err
