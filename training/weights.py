"""Weights from anywhere -> a state dict in timm's names, on the CPU, that `model.grow` and `model.load` then fit.

    runs/NAME, or any folder       its model.safetensors (or pytorch_model.bin): a finished run, or a timm model folder
    x.safetensors, 000001234.pt    a file of weights, a checkpoint of ours
    deit_3_*.pth                   an official file, whose gamma_1 and gamma_2 are timm's ls1.gamma and ls2.gamma
    timm:NAME                      downloaded by timm, or taken from its cache
    hf-hub:ORG/NAME[@REVISION]     its model.safetensors, and the class names in its config.json; nothing else

Pickled files are read with `weights_only=True`, so nothing in them is executed. The official ones hold the options of
their run beside the weights, an argparse.Namespace: the one class that is let in.
"""

import argparse
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from config import train_command
from ffcv_ops.errors import UserError

IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
SOURCES = train_command.WEIGHTS


def read(source: str | Path) -> dict[str, Tensor]:
    """The weights that `source` names, as above; UserError where there are none."""
    kind, name = _split(source)
    if kind == "timm":
        weights = _fetched(source, lambda: timm.create_model(name, pretrained=True).state_dict())
    elif kind == "hf-hub":
        weights = _read_file(Path(_from_hub(source, "model.safetensors")))
    else:
        weights = _read_file(Path(name))
    return {re.sub(r"\bgamma_([12])$", r"ls\1.gamma", key): value for key, value in weights.items()}


def class_names(source: str | Path) -> tuple[str, ...] | None:
    """The names of the outputs where a model folder's config.json lists them (`label_names`), else None."""
    kind, name = _split(source)
    if kind == "timm":
        return None
    config = Path(_from_hub(source, "config.json")) if kind == "hf-hub" else Path(name) / "config.json"
    if not config.is_file():
        return None
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        names = content.get("label_names") or content.get("pretrained_cfg", {}).get("label_names")
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        return tuple(map(str, names)) if names else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{config}: not the config.json of a timm model ({error!r:.200})") from error


def _split(source):
    """What kind of source, and its name."""
    kind, colon, name = str(source).partition(":")
    return (kind, name) if colon and kind in ("timm", "hf-hub", "local-dir") else ("file", str(source))


def _from_hub(source, file):
    repository, _, revision = _split(source)[1].partition("@")
    return _fetched(source, lambda: hf_hub_download(repository, file, revision=revision or None))


def _fetched(source, fetch):
    try:
        return fetch()
    except Exception as error:  # a name that nobody knows, no network, a broken cache: each has errors of its own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"cannot fetch {source!r} ({reason:.200}); this needs the network, or the cache") from error


def _read_file(path):
    if path.is_dir():
        path = next((path / name for name in IN_FOLDER if (path / name).exists()), path / IN_FOLDER[0])
    if not path.is_file():
        raise UserError(f"{path}: no such file; --init takes {SOURCES}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.get("model", content)
        if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError("it holds no weights under the key `model`")
        return weights
    except pickle.UnpicklingError as error:  # torch's own words advise to load it all the same, which could run code
        fault = "it is not of torch.save, or holds more than tensors and plain values, which are not loaded"
        raise UserError(f"{path}: cannot be read as weights ({fault})") from error
    except Exception as error:  # torch.load and safetensors raise many kinds; each means that the file cannot be used
        reason = "".join(filter(str.isprintable, str(error).partition("\n")[0]))  # torch's has escape codes
        raise UserError(f"{path}: cannot be read as weights ({reason:.200})") from error


def matching_rows(
    old: int, new: int, *, old_names: Sequence[str] | None = None, new_names: Sequence[str] | None = None
) -> list[int]:
    """For each of `new` classes the one of `old` classes with the same name, or -1.

    Names that are not given, or not that many, are the synsets of the ImageNet with so many classes, as timm lists it.
    """
    names = []
    for count, given in ((old, old_names), (new, new_names)):
        known = given if given is not None and len(given) == count else synsets(count)
        if known is None:
            raise UserError(
                f"head: map needs the names of {count} classes, and no ImageNet that timm knows has that many; write"
                " the .beton from class folders, which names them in the .json beside it, or set head: new"
            )
        names.append(known)
    place = {name: row for row, name in enumerate(names[0])}
    rows = [place.get(name, -1) for name in names[1]]
    if max(rows) < 0:
        raise UserError(f"head: map finds none of the classes {names[1][0]}, ... in the weights; set head: new")
    return rows


def synsets(count: int) -> list[str] | None:
    """The classes of the ImageNet with so many of them, as timm orders them; None if there is none."""
    subset = infer_imagenet_subset({"num_classes": count})
    return None if subset is None else ImageNetInfo(subset).label_names()
