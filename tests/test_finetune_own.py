"""Own images in one line, as a newcomer does it: a folder without val/, converted, fine-tuned from given weights."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import train_imagenet
from training.network import model

ROOT = Path(__file__).resolve().parents[1]
MODEL = "deit3_micro_patch16_224"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """pets/train with three classes of 16 noisy pictures that differ in the direction of their stripes."""
    root, noise = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    y, x = np.mgrid[:60, :80]
    for name, stripes in {"cats": x, "dogs": y, "owls": x + y}.items():
        (root / "pets" / "train" / name).mkdir(parents=True)
        for number in range(16):
            bright = 120 + 80 * np.sin(stripes / 3 + number)[..., None] + noise.normal(0, 20, (60, 80, 3))
            Image.fromarray(bright.clip(0, 255).astype("u1")).save(root / "pets" / "train" / name / f"{number}.jpg")
    return root


def test_from_a_folder_to_a_model(folder, tmp_path, monkeypatch, capsys):
    hint = write(folder, "--data.source=pets", f"--data.out={tmp_path}/hint")
    assert "--data.val_share=0.1" in hint
    said = write(folder, "--data.source=pets", "--data.val_share=0.25")
    assert "36 images of 3 classes" in said and "12 images of 3 classes" in said

    torch.manual_seed(0)
    given = model.create(MODEL, resolution=32, classes=7, drop_path=0, layer_scale=0.5).state_dict()
    save_file(given, folder / "weights.safetensors")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(train_imagenet.report, "write", lambda folder: "")  # drawing takes longer than training
    words = ["--cfg", str(ROOT / "recipes/finetune_own.yaml"), "--data.train=data/pets_train.beton",
             "--data.val=data/pets_val.beton", f"--model.name={MODEL}", "--log.tensorboard=false",
             "--stage.resolution=32", "--stage.epochs=2", "--stage.warmup_epochs=0", "--speed.device=cpu"]  # fmt: skip
    assert "needs --init" in refusal(capsys, words)
    words.append("--init=weights.safetensors")
    proposed = re.search(r"36 images do not fill one batch of 64; try (.*) and a lower ", refusal(capsys, words))
    train_imagenet.main([*words, *proposed[1].split()])
    rows = [json.loads(line) for line in Path("runs/finetune_own/log.jsonl").read_text().splitlines()]
    assert [row for row in rows if row["kind"] == "epoch"][-1]["val_images"] == 12
    trained = load_file("runs/finetune_own/model.safetensors")
    assert trained["head.weight"].shape[0] == 3, "the classes are those of the folder"
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"):
        same = torch.cosine_similarity(trained[name].flatten(), given[name].flatten(), dim=0)
        assert 0.9 < same < 1 - 1e-9, "it started from the given weights and learned"


def write(folder, *words):
    command = [sys.executable, str(ROOT / "write_datasets.py"), *words, "--data.workers=1"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=True).stdout


def refusal(capsys, words):
    """What the command says when it ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        train_imagenet.main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err
