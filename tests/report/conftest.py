"""A run folder as training leaves it, made without training; and a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from config.recipe import load_recipe, render_recipe
from training import datasets
from training.evaluation import predictions
from training.planning import estimate

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert('x')</script>&\"<b>"


@pytest.fixture(scope="session")
def make_run():
    """make_run(folder, cfg=..., epochs=n, top1=f): the first n epochs of a recipe's stages, five steps each, top-1 by
    f(epoch of its stage) in percent."""

    def make(folder, *, cfg="recipes/smoke.yaml", epochs=2, top1=lambda epoch: 61.79, overrides=(), val_images=403):
        folder.mkdir(parents=True)
        run = load_recipe(ROOT / cfg, dict(overrides))
        (folder / "recipe.yaml").write_text(render_recipe(run))
        plans = estimate.training_plan(run, datasets.planned_sets(run), 0)
        plans = [plan._replace(steps_per_epoch=5, val_images=val_images) for plan in plans]
        (folder / "plan.json").write_text(json.dumps([plan._asdict() for plan in plans]))
        about = {"commit": "abc1234", "devices": ["one GPU"] * 2, "cuda": "13.0", "ranks": 2}
        (folder / "environment.json").write_text(json.dumps(about))
        rows, step = [], 0
        all_epochs = [(stage, epoch) for stage in run.stages for epoch in range(1, stage.epochs + 1)]
        for stage, epoch in all_epochs[:epochs]:
            common = {"stage": stage.name, "lr": 0.00123, "grad_norm": 0.5, "images_per_s": 100.0, "wait": 0.0123}
            for _ in range(5):
                step += 1
                rows.append({"kind": "step", "epoch": epoch - 1, "step": step, "loss": 3 / step, "seconds": 2.0,
                             "bad_steps": 0, "wall": 3.0 * step, "at": 1_800_000_000 + 3 * step, **common})  # fmt: skip
            rows.append({"kind": "epoch", "epoch": epoch, "epochs": stage.epochs, "step": step, "loss": 0.7531,
                         "seconds": 10.0, "bad_steps": 0, "top1": top1(epoch) / 100, "top5": 0.9, "val_loss": 1.2345,
                         "val_images": val_images, "resolution": stage.resolution, "wall": 3.0 * step,
                         "at": 1_800_000_000 + 3 * step, **common})  # fmt: skip
            if stage.ema is not None:
                rows[-1]["ema_top1"] = 0.6543
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make


@pytest.fixture(scope="session")
def guesses():
    """Predictions of 60 images of 4 classes, one of them with a hostile name, and pictures of 3 of the mistakes."""
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 4, (2, 60))
    shown = np.flatnonzero(labels != predicted)[:3]
    pictures = random.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    names = np.array(["cat", "dog", HOSTILE, "owl"])
    files = np.array(["val/cat/1.jpg", HOSTILE, "val/owl/3.jpg"])
    return predictions.Predictions(labels, predicted, random.uniform(0.3, 1, 60), names, shown, pictures, files)


class Browser:
    """Headless Chromium. Its own calls home are stopped, and known from those of an empty page."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        (folder / "empty.html").write_text("<!DOCTYPE html><title>x</title>")
        self.own = self._hosts(folder / "empty.html")

    def _run(self, page, *options):
        done = subprocess.run(
            [self.program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
             "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={self.folder / 'profile'}", *options,
             Path(page).as_uri()],
            capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    def _hosts(self, page):
        log = self.folder / "net.json"
        self.last = self._run(page, f"--log-net-log={log}", "--dump-dom")
        return set(re.findall(r'"url":"\w+://([^/"]+)', log.read_text(errors="replace")))

    def load(self, page):
        """(its DOM as text, what its console says, hosts that it asks for)."""
        hosts = self._hosts(page) - self.own
        return self.last.stdout, [line for line in self.last.stderr.splitlines() if "CONSOLE" in line], hosts

    def screenshot(self, page, path, *, width, height=1500, dark=False):
        """Takes one."""
        mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
        self._run(page, f"--screenshot={path}", f"--window-size={width},{height}", *mode)
        return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine; as root, ./setup.sh dev installs Debian's")
    return Browser(program, tmp_path_factory.mktemp("browser"))
