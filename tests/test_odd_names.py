"""A class folder whose name is not UTF-8, and a description with a lone surrogate."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from ffcv_ops.storage import beton_file

ROOT = Path(__file__).resolve().parents[1]


def test_a_folder_that_is_not_utf8_is_converted_and_readable(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"images", b"train", b"caf\xe9")
    os.makedirs(folder)
    with open(os.path.join(folder, b"a.jpg"), "wb") as file:
        Image.new("RGB", (40, 40)).save(file, "JPEG")
    command = [sys.executable, "write_datasets.py", f"--data.source={tmp_path / 'images'}", "--data.workers=1",
               f"--data.out={tmp_path / 'x'}"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    assert json.loads((tmp_path / "x_train.json").read_text(encoding="utf-8"))["classes"] == ["caf\\udce9"]


def test_a_lone_surrogate_in_a_description_is_printable(tmp_path):
    (tmp_path / "x.json").write_text('{"classes": ["\\udcff", "caf\\u00e9"]}')
    assert beton_file._read_sidecar(tmp_path / "x.beton")[1] == ("\\udcff", "café")
