"""Weights from anywhere -> a state dict in timm's names, on the CPU, which adapt_weights.py makes fit a network.

    runs/NAME, or any folder       its model.safetensors (or pytorch_model.bin): a finished run, or a timm model folder
    x.safetensors, 000001234.pt    a file of weights, a checkpoint of ours
    deit_3_*.pth                   an official file, whose gamma_1 and gamma_2 are timm's ls1.gamma and ls2.gamma
    timm:NAME                      downloaded by timm, or taken from its cache
    hf-hub:ORG/NAME[@REVISION]     its model.safetensors, and the class names in its config.json; nothing else

In a file of several parts the weights are under one of the names in PARTS. What DDP and torch.compile put before a
weight's name is taken off.

Pickled files are read with `weights_only=True`, so nothing in them is executed. Official checkpoints hold the options
of their run too, which are objects: an empty stand-in is made of each.
"""

import argparse
import json
import os
import pathlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from config import train_command
from config.recipe import load_recipe
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import open_regular, read_regular

IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
SOURCES = train_command.WEIGHTS
# The official code and ours say `model`, timm's train.py `state_dict`; the others are averages, taken in need only.
PARTS = ("model", "state_dict", "model_ema", "state_dict_ema")


def silent(message: str) -> None:
    """What is said to nobody."""


def read(source: str | Path, say: Callable[[str], object] = silent) -> dict[str, Tensor]:
    """The weights that `source` names, as above; UserError where there are none. `say` is told where they were not
    simply there: under which name they were, or that their own names were cut."""
    kind, name = _split(source)
    if kind == "timm":
        weights = _fetched(source, lambda: timm.create_model(name, pretrained=True).state_dict())
    elif kind == "hf-hub":
        weights = _read_file(Path(_from_hub(source, "model.safetensors")), say)
    else:
        weights = _read_file(Path(name), say)
    return {re.sub(r"\bgamma_([12])$", r"ls\1.gamma", key): value for key, value in weights.items()}


def class_names(source: str | Path) -> tuple[str, ...] | None:
    """The names of the outputs where a model folder's config.json lists them (`label_names`), else None."""
    content = _model_config(source)
    names = content.get("label_names") or content.get("pretrained_cfg", {}).get("label_names")
    try:
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        return tuple(map(str, names)) if names else None
    except (KeyError, TypeError) as error:
        raise UserError(f"{source}: its config.json has no list of label_names ({error!r:.200})") from error


def preprocessing(source: str | Path) -> dict[str, dict]:
    """How the images of these weights are prepared, as values of a recipe, {section: {option: value}}: what their
    run's recipe says, or timm's pretrained configuration; nothing where they come without both."""
    kind, name = _split(source)
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    if kind == "file" and (folder / "recipe.yaml").is_file():
        recipe = load_recipe(folder / "recipe.yaml")
        model, stage = recipe.model, recipe.stages[-1]
        known = {"mean": model.mean, "std": model.std}
        known |= {"interpolation": stage.interpolation, "crop_pct": stage.eval_crop}
    elif kind == "timm":
        is_known = timm.is_model(name.partition(".")[0])
        known = vars(_fetched(source, lambda: timm.get_pretrained_cfg(name))) if is_known else {}
    else:
        content = _model_config(source)
        known = content.get("pretrained_cfg", content)
    return {
        section: {ours: known[theirs] for ours, theirs in names.items() if known.get(theirs) is not None}
        for section, names in _PREPARED.items()
    }


_PREPARED = {  # a recipe's options by timm's names
    "model": {"mean": "mean", "std": "std"},
    "stage": {"interpolation": "interpolation", "eval_crop": "crop_pct"},
}


def _model_config(source) -> dict:
    """The config.json beside weights; empty where there is none."""
    kind, name = _split(source)
    if kind == "timm":
        return {}
    path = Path(_from_hub(source, "config.json")) if kind == "hf-hub" else Path(name) / "config.json"
    if not os.path.lexists(path):
        return {}
    try:
        content = json.loads(read_regular(path))
        if not isinstance(content, dict) or not isinstance(content.get("pretrained_cfg", {}), dict):
            raise ValueError("no object")
        return content
    except ValueError as error:
        raise UserError(f"{path}: not the config.json of a timm model ({error!r:.200})") from error


def _split(source):
    """What kind of source, and its name."""
    kind, colon, name = str(source).partition(":")
    return (kind, name) if colon and kind in ("timm", "hf-hub", "local-dir") else ("file", str(source))


def _from_hub(source, file):
    import huggingface_hub  # most runs start from no hub

    repository, _, revision = _split(source)[1].partition("@")
    return _fetched(source, lambda: huggingface_hub.hf_hub_download(repository, file, revision=revision or None))


def _fetched(source, fetch):
    try:
        return fetch()
    except Exception as error:  # a name that nobody knows, no network, a broken cache: each has errors of its own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"cannot fetch {source!r} ({reason:.200}); this needs the network, or the cache") from error


# --- files ---------------------------------------------------------------------------------------------------------


def _read_file(path, say):
    if path.is_dir():
        path = next((path / name for name in IN_FOLDER if (path / name).exists()), path / IN_FOLDER[0])
    if not path.exists():
        raise UserError(f"{path}: no such file; --init takes {SOURCES}")
    try:
        open_regular(path).close()
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
        part, weights = _part_with_weights(content)
    except pickle.UnpicklingError as error:  # torch's own words advise to load it all the same, which could run code
        raise UserError(f"{path}: cannot be read as weights ({_what_is_not_loaded(path)})") from error
    except Exception as error:  # torch.load and safetensors raise many kinds; each means that the file cannot be used
        reason = "".join(filter(str.isprintable, str(error).partition("\n")[0]))  # torch's has escape codes
        raise UserError(f"{path}: cannot be read as weights ({reason:.200})") from error
    if part not in ("", "model"):
        say(f"{path}: the weights are taken from its {part}")
    renamed = _without_prefixes(weights)
    if renamed.keys() != weights.keys():
        say(f"{path}: what DDP or torch.compile put before the weights' names (module., _orig_mod.) is taken off")
    return renamed


class _StandIn:
    """In the place of an object that a file holds beside its weights; made of anything, and empty."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


# What official checkpoints hold: their run's options, and among these, of a run by run_with_submitit.py, its folder.
# A path is pickled under its own system's name, and since Python 3.13 under another module's.
_STOOD_IN_FOR = [f"{argparse.Namespace.__module__}.Namespace"] + [
    f"{module}.{kind}"
    for module in (pathlib.__name__, "pathlib._local")
    for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
]


def _unpickled(path):
    with torch.serialization.safe_globals([(_StandIn, name) for name in _STOOD_IN_FOR]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _what_is_not_loaded(path):
    try:
        names = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(_STOOD_IN_FOR))
    except Exception:  # it is not even a file of torch.save
        names = []
    if not names:
        return "it is not of torch.save, or holds more than tensors and plain values, which are not loaded"
    shown = ", ".join(map(one_line, names[:3]))
    return f"it holds more than tensors and plain values, which are not loaded: {shown:.200}; save its weights alone"


def _part_with_weights(content):
    """The name of the part that is weights, "" for all of it, and the weights."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    part = next((name for name in PARTS if isinstance(content.get(name), dict)), "")
    weights = content[part] if part else content
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"it holds no weights under the key `model`, nor {', '.join(PARTS[1:])}, nor by themselves")
    for key, value in weights.items():
        if not isinstance(key, str):
            raise ValueError(f"a weight's name is {key!r:.40}, which is no text")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu" or value.is_complex():
            raise ValueError(f"{key} is not a plain tensor: sparse, quantized, complex or without content")
    return part, weights


def _without_prefixes(weights):
    """torch.compile's mark stands before the name of whatever was compiled, DDP's before all names."""
    weights = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    while weights and all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights
