"""Augmentations in files of the user's own: the tutorial's commands, the loader's bits, the cache, every mistake."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from config import loading
from config.recipe import BASE_RECIPE, load_recipe, render_recipe
from ffcv_ops import rng
from ffcv_ops.augment import calls, chain, load
from ffcv_ops.errors import UserError
from ffcv_ops.kernels import resample
from ffcv_ops.rng import RandomKey
from tests.ffcv_ops.images import augmented

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "augmentations.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
COMMANDS = re.findall(r"^python .*$", PAGE, re.MULTILINE)
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the user stands, with grain.py in it."""
    (tmp_path / "grain.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.timeout(580)
def test_the_tutorials_commands_run(folder, jpg_beton):
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "data").mkdir()
    (folder / "data" / "photos_train.beton").symlink_to(jpg_beton)
    show, train = COMMANDS
    show = [sys.executable, *shlex.split(show)[1:], "--images=1"]
    found = subprocess.run(show, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "second_48: src(48) | flip(.5) | grain.py:grain(40)" in found.stdout
    assert (folder / "grain.png").stat().st_size > 10_000
    train = [sys.executable, str(ROOT / "train_imagenet.py"), *shlex.split(train)[2:], "--log.name=own"]
    train += ["--data.val=data/photos_train.beton", "--model.classes=5", "--stage.batch=16", "--stage.mix_chunk=16"]
    found = subprocess.run(train, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    kept = (folder / "runs" / "own" / "recipe.yaml").read_text()
    assert re.search(r"three\(ops=gray\+solarize\+blur\) \| grain.py:grain@[0-9a-f]{16}\(strength=24\)", kept)


def test_what_it_does_is_what_it_says(folder, photos):
    """The kernel's noise, from the same numbers, by NumPy."""
    image = photos["cat"][:40, :50]
    changed = 0
    for draw in range(20):
        key = load.key_of(1, True, RandomKey(5, draw))
        expected = augmented(image, "jitter(0.2)", RandomKey(5, draw))
        if rng.uniform(key, 0) < 0.5:
            noise = np.array([rng.uniform(key, 1 + place) for place in range(2000)]).reshape(40, 50, 1)
            expected = np.clip(np.rint(expected + 30 * (2 * noise - 1)), 0, 255).astype(np.uint8)
            changed += 1
        found = augmented(image, "jitter(0.2) | grain.py:grain(30)", RandomKey(5, draw))
        np.testing.assert_array_equal(found, expected)
    assert 3 < changed < 17


def test_two_of_them_draw_other_numbers(folder, photos):
    image = np.full((30, 30, 3), 128, np.uint8)
    once = augmented(image, "grain.py:grain(30, 1)", RandomKey(1, 2)).astype(int) - 128
    twice = augmented(image, "grain.py:grain(30, 1) | grain.py:grain(30, 1)", RandomKey(1, 2)).astype(int) - 128
    assert abs(np.corrcoef(once[..., 0].ravel(), (twice - once)[..., 0].ravel())[0, 1]) < 0.15


IS_GRAY = """
from ffcv_ops import rng
from ffcv_ops.augment import augmentation
from ffcv_ops.compiled import kernel
from ffcv_ops.kernels import pixels

@kernel
def falls(options, key):
    return rng.uniform(key, 0) < 0.5

@augmentation(is_gray=falls)
def sometimes(planes, options, key, scratch):
    if falls(options, key):
        pixels.grayscale(planes)
"""


def test_it_is_asked_for_gray_with_the_numbers_that_it_draws(folder):
    """With min_oversampling the loader decodes the luma alone of what is going to be gray."""
    (folder / "gray.py").write_text(IS_GRAY)
    own = load.compiled(load.from_text("gray.py:sometimes"), resample.BICUBIC)
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    found = [augmented(image, "gray.py:sometimes", RandomKey(1, draw)) for draw in range(50)]
    gray = [(one == one[..., :1]).all() for one in found]
    assert gray == [calls.is_gray(own, RandomKey(1, draw)) for draw in range(50)]
    assert 10 < sum(gray) < 40


LOADS = """
import sys, dataclasses, hashlib
from training import loading as loader
from ffcv_ops.augment import chain, load
from config.recipe import BASE_RECIPE, load_recipe
given = {"stage.augment": "three | grain.py:grain(24)", "stage.resolution": "48", "stage.batch": "16"}
stage = load_recipe(BASE_RECIPE, given | {"stage.mix_chunk": "8"}).stages[0]
batches = %s
digest = hashlib.sha256()
for images, labels in batches.epoch(0):
    digest.update(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
grain = load.from_text(stage.augment)[1].augmentation
print(digest.hexdigest(), grain.callback.cache_hits)
"""
TRAIN = "loader.train_loader(sys.argv[1], 96, stage, seed=3, placement=loader.Placement(workers=int(sys.argv[2])))"


def test_the_loader_gives_the_same_bits_on_any_workers_and_compiles_once(folder, jpg_beton):
    def run(workers):
        words = [sys.executable, "-c", LOADS % TRAIN, str(jpg_beton), str(workers)]
        environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(cache)}
        found = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout.split()

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    (folder / "grain.py").write_text(CODE + f"\n# {folder}\n")  # a file that no run before has compiled
    first, again = run(1), run(3)
    assert first[0] == again[0]
    assert (first[1], again[1]) == ("0", "1")


def test_a_recipe_pins_the_file_and_executes_nothing(folder):
    (folder / "grain.py").write_text("raise SystemExit('executed')\n")
    run = load_recipe(BASE_RECIPE, {"stage.augment": "three | grain.py:grain(24)"})
    assert re.fullmatch(
        r"three\(ops=gray\+solarize\+blur\) \| grain.py:grain@[0-9a-f]{16}\(24\)", run.stages[0].augment
    )
    assert loading.describe(run.stages[0]).endswith("| three(gray+solarize+blur) | grain.py:grain(24) | jitter(.3)")
    kept = folder / "recipe.yaml"
    kept.write_text(render_recipe(run))
    (folder / "grain.py").unlink()
    assert load_recipe(kept) == run  # a run folder is read where the file is gone


def test_a_changed_file_is_not_the_runs(folder):
    pinned = chain.pin("grain.py:grain(24)")
    load.from_text(pinned)
    (folder / "grain.py").write_text(CODE + "\n")
    with pytest.raises(UserError, match=r"grain.py is not what the recipe was resolved with \(hash [0-9a-f]{16}, now "):
        load.from_text(pinned)


MISTAKES = {
    "no file": (None, "nothing.py:grain", "nothing.py cannot be read: No such file"),
    "no such name": (None, "grain.py:grian", r"grain.py: grian is not an augmentation in it; the nearest is 'grain'"),
    "nothing declared": ("x = 1\n", "grain.py:x", "x is not an augmentation in it; it holds no @augmentation"),
    "syntax": ("def grain(:\n", "grain.py:grain", r"grain.py, line 1: invalid syntax"),
    "python": ("a = 1\nb = a / 0\n", "grain.py:grain", r"grain.py, line 2: ZeroDivisionError: division by zero"),
    "an option": (None, "grain.py:grain(strenght=3)", "grain has no option 'strenght'; the nearest is 'strength'"),
    "a value": (None, "grain.py:grain(999)", r"grain: strength is '999'; it must be a number 0 to 128"),
    "typing": (CODE.replace("options.probability:", "options.probabilty:"), "grain.py:grain",
               r"grain.py, line 11: grain declares no option .probabilty."),
    "name": (CODE.replace("min(max(", "clip(max("), "grain.py:grain",
             r"grain.py, line 18: grain cannot be compiled: .*clip"),
    "a signature": (CODE.replace("options.probability:", "options.probability + 'x':"), "grain.py:grain",
                    r"grain.py, line 11: grain cannot be compiled: .* signature: add\(float64, Literal\[str\]\(x\)\)$"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "text", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(folder, code, text, said):
    if code is not None:
        (folder / "grain.py").write_text(code)
    with pytest.raises(UserError, match=said) as caught:
        load.compiled(load.from_text(text), resample.BICUBIC)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_a_command_with_status_2(folder):
    words = [sys.executable, "-m", "tools.preview", str(ROOT / "docs" / "three_augment.png"), "--cfg"]
    words += [str(ROOT / "recipes" / "smoke.yaml"), "--augment", "grain.py:grian"]
    found = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "error: grain.py: grian is not an augmentation in it; the nearest is 'grain'\n"
