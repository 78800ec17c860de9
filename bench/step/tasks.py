"""What is measured: models at a resolution and a batch, as jobs of train_imagenet.py."""

from pathlib import Path
from typing import NamedTuple

import torch
from training.step import Run

import train_imagenet
from config.recipe import load_recipe
from training import distributed
from training.datasets import DataSet

ROOT = Path(__file__).resolve().parents[2]


class Task(NamedTuple):
    """A step: the model at a resolution, samples at once and rate of stochastic depth."""

    title: str
    model: str
    resolution: int
    batch: int
    drop_path: float
    on: str  # cpu or cuda
    contenders: tuple[str, ...]


ALL, DEPTH = ("ours", "exact", "reference", "timm-compiled"), ("ours", "exact")
ON_CPU = (*ALL, "ours-bf16")
SMALL, BASE = "deit3_small_patch16_224", "deit3_base_patch16_224"
TASKS = {
    "S112": Task("ViT-S/16, 112 px, batch 16, stochastic depth .05", SMALL, 112, 16, 0.05, "cpu", ON_CPU),
    "depth.45": Task("ViT-S/16, 112 px, batch 32, stochastic depth .45", SMALL, 112, 32, 0.45, "cpu", DEPTH),
    "depth.05": Task("ViT-S/16, 112 px, batch 32, stochastic depth .05", SMALL, 112, 32, 0.05, "cpu", DEPTH),
    "S224": Task("ViT-S/16, 224 px, batch 256, stochastic depth .05", SMALL, 224, 256, 0.05, "cuda", ALL),
    "B192": Task("ViT-B/16, 192 px, batch 256, stochastic depth .2", BASE, 192, 256, 0.2, "cuda", ALL),
}
QUICK = TASKS["S112"]._replace(title="quick: 6 blocks, 48 px, batch 16", model="deit3_micro_patch16_224", resolution=48)


def job_of(task: Task, *, drop_path: str, compiles: bool, device: torch.device, precision: str = "auto") -> Run:
    keys = {
        "model.name": task.model, "stage.resolution": task.resolution, "stage.batch": task.batch,
        "stage.mix_chunk": task.batch, "stage.drop_path": task.drop_path, "speed.drop_path": drop_path,
        "speed.compile": compiles, "speed.device": device.type,
    }  # fmt: skip
    recipe = load_recipe(ROOT / "recipes/vit_s_800ep.yaml", {key: str(value) for key, value in keys.items()})
    ranks = distributed.Ranks(0, 0, 1, device)
    return Run(recipe, ranks, {"main": DataSet(None, None, 1000)}, train_imagenet.precision(precision, device))
