"""What makes a run the same run: all that decides its result. Every checkpoint carries it, and run.json shows it.

options     the recipe's options that change results
data        the fingerprints of the training and validation data that its stages read
init        what --init named, and a hash of the weights that it gave; None: nothing
code        the commit of this repository; going on with another one is said, not refused
"""

import xxhash
from torch import Tensor

from config.recipe import Recipe, result_changing_options
from training.datasets import DataSet

FILE = "run.json"


def identity_of(recipe: Recipe, datasets: dict[str, DataSet], *, init: dict | None, code: str) -> dict:
    """The identity of a run that begins now, as plain values. init: of `init_of`."""
    data = {word: {"train": part.train.fingerprint, "val": part.val.fingerprint} for word, part in datasets.items()}
    return {"options": result_changing_options(recipe), "data": data, "init": init, "code": code}


def init_of(source: str, weights: dict[str, Tensor]) -> dict:
    """What --init named, and a hash of the names, shapes and values of the weights."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().double().numpy().tobytes())
    return {"source": str(source), "hash": digest.hexdigest()}


def difference(before: dict, now: dict) -> str:
    """The first thing in which two runs differ, in words; "" where they are the same. Stages that are done may have
    had data sets that are no longer asked for, and who goes on need not say --init again."""
    try:
        for name in sorted(before["options"].keys() | now["options"].keys()):
            old, new = (run["options"].get(name) for run in (before, now))
            if old != new:
                return f"{name} {old}, not {new}"
        for word, parts in now["data"].items():
            for name, fingerprint in parts.items():
                if before["data"].get(word, parts).get(name) != fingerprint:
                    return f"its {name} data have other images, labels or class names"
        if now["init"] is not None and (before["init"] or {}).get("hash") != now["init"]["hash"]:
            return f"it began from {before['init']['source'] if before['init'] else 'no weights'}"
    except (AttributeError, LookupError, TypeError):
        return "it does not say of which run"
    return ""
