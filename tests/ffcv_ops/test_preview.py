"""The contact sheet: it shows what the loader would hand out, says what was done, and refuses rubbish."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_ops import crops, decoders, policies, preview

RECIPE = str(Path(__file__).resolve().parents[2] / "recipes" / "vit_s_400ep.yaml")


@pytest.mark.parametrize("fixture", ["jpg_beton", "raw_beton"])
def test_a_sheet_of_a_beton(request, fixture, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    preview.main([str(request.getfixturevalue(fixture)), "--cfg", RECIPE, "--out", str(path), "--images", "2"])
    assert "2 images, 7 draws each" in capsys.readouterr().out
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


def test_stored_images_are_those_of_the_file(raw_beton, tiles):
    for shown, index in zip(preview.stored_images(raw_beton, 3), (0, 47, 95), strict=True):
        np.testing.assert_array_equal(shown, tiles[index])


def test_words_name_the_operation_of_the_draw(photos):
    image = photos["cat"]
    height, width, _ = image.shape
    plan = decoders.Plan(crop=crops.CENTRE, augment=policies.THREE)
    seen = set()
    for draw in range(30):
        said = preview.words(plan, height, width, 64, seed=0, draw=draw)
        shown = decoders.show(image, plan=plan, resolution=64, seed=0, draw=draw)
        is_gray = (shown == shown[..., :1]).all()
        assert is_gray == (said == "gray")
        seen.add(said.split()[0])
    assert seen == {"gray", "solarize", "blur"}


def test_words_name_the_operations_of_randaugment(photos):
    """Where nothing is named, nothing happens, and the crops are those of no policy."""
    image = photos["cat"]
    height, width, _ = image.shape
    plan = decoders.Plan(crop=crops.CENTRE, augment=policies.RAND, rand_probability=0.3)
    plain = decoders.show(image, plan=plan._replace(augment=policies.NONE), resolution=64, seed=0, draw=0)
    named = 0
    for draw in range(40):
        said = preview.words(plan, height, width, 64, seed=0, draw=draw)
        same = np.array_equal(decoders.show(image, plan=plan, resolution=64, seed=0, draw=draw), plain)
        assert said or same
        named += bool(said) and not same
    assert 15 < named < 32  # about half of them: 1 - .7^2


def test_all_policies_on_one_photograph(jpg_beton, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    preview.main([str(jpg_beton), "--cfg", RECIPE, "--out", str(path), "--all-policies", "--draws", "2"])
    assert "10 policies, 2 draws each" in capsys.readouterr().out
    assert Image.open(path).size == (round(1.65 * 3 * 100), round(2.35 * 10 * 100))


def test_rubbish_is_refused(tmp_path, capsys):
    (tmp_path / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as ended:
        preview.main([str(tmp_path / "x.jpg"), "--cfg", RECIPE])
    assert ended.value.code == 2
    assert "neither a .beton nor an image" in capsys.readouterr().err
